"""Point pytest at a transformer, get a verdict you can trust.

Nothing heavy is imported here: the names below load their modules when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_transformer_validate.checks.registry import Check, check
    from pytest_transformer_validate.errors import CheckFailed, NotApplicable
    from pytest_transformer_validate.measures.measurement import Measurement
    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.report.record import Record
    from pytest_transformer_validate.subject.subject import Subject
    from pytest_transformer_validate.task import TaskSpec
    from pytest_transformer_validate.validation import Result, validate

_HOMES = {
    "Check": "checks.registry",
    "CheckFailed": "errors",
    "Measurement": "measures.measurement",
    "NotApplicable": "errors",
    "Probe": "probe.probe",
    "Record": "report.record",
    "Result": "validation",
    "Subject": "subject.subject",
    "TaskSpec": "task",
    "check": "checks.registry",
    "load_ipython_extension": "notebook",
    "unload_ipython_extension": "notebook",
    "validate": "validation",
}

__all__ = [
    "Check",
    "CheckFailed",
    "Measurement",
    "NotApplicable",
    "Probe",
    "Record",
    "Result",
    "Subject",
    "TaskSpec",
    "check",
    "validate",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
