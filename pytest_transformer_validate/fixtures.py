"""Fixtures for tests about a model: the bundled checks use them, and so can any test.

All are function-scoped, so that a conftest.py can replace each of them by a plain fixture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_transformer_validate.errors import SourceError, SubjectError
from pytest_transformer_validate.report.text import printable
from pytest_transformer_validate.report.trace import model_traceback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from pytest_transformer_validate.models import RunModel, Shared
    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.sources.base import Loaded
    from pytest_transformer_validate.subject.subject import Subject
    from pytest_transformer_validate.training.trainer import Trainer

ENTRY = "_tb_entry"
CASE = "_tb_case"
SHARED = pytest.StashKey["Shared"]()

NO_MODEL = (
    "this test asks for a model and the run has none; name one with --tb-model=SPEC, "
    "with the ini key tb_model, or in conftest.py (hook pytest_tb_models, or a fixture tb_model)"
)


class Stopped(Exception):
    """Carries out of a fixture what is no Exception: pytest does not finish a fixture that
    raised it, and cannot set it up for the next test. ``error`` is what was raised."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(type(error).__name__)
        self.error = error


@pytest.fixture
def _tb_case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def _tb_entry(request: pytest.FixtureRequest) -> RunModel | None:
    """The model of the run that this test is about."""
    own: RunModel | None = getattr(request.node, "model", None)
    return getattr(request, "param", own)


@pytest.fixture
def _tb_test(request: pytest.FixtureRequest) -> pytest.FixtureRequest:
    """The test that asks, for all fixtures below: pytest makes each ``request`` anew."""
    return request


@pytest.fixture
def _tb_loaded(_tb_test: pytest.FixtureRequest, _tb_entry: RunModel | None) -> Iterator[Loaded]:
    if _tb_entry is None:
        pytest.fail(NO_MODEL, pytrace=False)
    entry = _tb_entry
    _for_people(_tb_test, entry.loaded, f"blocked by load: {entry.id} does not load")
    with entry.in_use() as loaded:
        yield loaded


@pytest.fixture
def tb_model(_tb_loaded: Loaded) -> torch.nn.Module:
    """The model (torch.nn.Module), as loaded: a test that changes it changes it for itself."""
    return _tb_loaded.model


@pytest.fixture
def tb_config(_tb_test: pytest.FixtureRequest, _tb_entry: RunModel | None) -> Any:
    """The model's configuration, read by key or by attribute."""
    if _tb_entry is not None:
        return _tb_test.getfixturevalue("_tb_loaded").config
    from pytest_transformer_validate.sources.config import ModelConfig

    return ModelConfig(getattr(_tb_test.getfixturevalue("tb_model"), "config", None))


@pytest.fixture
def tb_tokenizer(_tb_test: pytest.FixtureRequest, _tb_entry: RunModel | None) -> Any:
    """The tokenizer that lies beside the model, else None."""
    if _tb_entry is not None:
        return _tb_test.getfixturevalue("_tb_loaded").tokenizer
    _tb_test.getfixturevalue("tb_model")
    return None


@pytest.fixture
def tb_device(_tb_test: pytest.FixtureRequest) -> torch.device:
    """The device of --tb-device (torch.device)."""
    from pytest_transformer_validate import options
    from pytest_transformer_validate.models import pick_device

    # not by the fixture pytestconfig, which remembers every use of it until the run ends
    return pick_device(options.Settings.from_config(_tb_test.config).device)


@pytest.fixture
def tb_subject(
    _tb_test: pytest.FixtureRequest,
    _tb_entry: RunModel | None,
    tb_model: torch.nn.Module,
    tb_config: Any,
    tb_tokenizer: Any,
    tb_device: torch.device,
) -> Subject:
    """The model in the form in which it can be called whatever its signature."""
    home = _shared(_tb_test.config) if _tb_entry is None else _tb_entry
    subject: Subject = _for_people(
        _tb_test,
        lambda: home.subject(tb_model, tb_config, tb_tokenizer, tb_device),
        "the model cannot be called",
    )
    return subject


@pytest.fixture
def tb_probe(
    _tb_test: pytest.FixtureRequest, _tb_entry: RunModel | None, tb_subject: Subject
) -> Probe:
    """The passes over the model, each of which happens once and is shared by all tests."""
    home = _shared(_tb_test.config) if _tb_entry is None else _tb_entry.shared
    return home.probe(tb_subject)


@pytest.fixture
def tb_batch(tb_subject: Subject) -> Any:
    """A small batch that the model takes: 2 rows of 8 positions, shorter for a short model."""
    return tb_subject.batch(rows=2, length=8)


@pytest.fixture
def tb_trainer(
    tb_model: torch.nn.Module,
    tb_subject: Subject,
    tb_tokenizer: Any,
    _tb_test: pytest.FixtureRequest,
) -> Callable[..., Trainer]:
    """Makes a Trainer of the model: ``tb_trainer(epochs=1, learning_rate=1e-3)``.

    Settings are those of TrainingConfig; those that are left out come from the options
    (``--tb-seed``, ``--tb-epochs``), nothing is saved or printed, and it runs on the model's
    device. The model is trained where it is; the next test gets it as loaded.
    """
    from pytest_transformer_validate.options import Settings
    from pytest_transformer_validate.training.config import TrainingConfig
    from pytest_transformer_validate.training.trainer import DeviceTrainer

    said = Settings.from_config(_tb_test.config)
    defaults = {"random_seed": said.seed, "epochs": said.epochs, "precision": "32-true"}
    defaults |= {"checkpoint_dir": None, "console": False}

    def make(**settings: Any) -> Trainer:
        config = TrainingConfig(**{**defaults, **settings})
        return DeviceTrainer(tb_model, tb_subject.config, config, tb_subject.task, tb_tokenizer)

    return make


def _shared(config: pytest.Config) -> Shared:
    """Subject and Probe of a model that a conftest.py gives in a run without models."""
    from pytest_transformer_validate.models import Shared
    from pytest_transformer_validate.options import Settings

    if SHARED not in config.stash:
        config.stash[SHARED] = Shared(Settings.from_config(config))
    return config.stash[SHARED]


def _for_people(request: pytest.FixtureRequest, make: Callable[[], Any], what: str) -> Any:
    """What ``make`` returns. A check gets its exception as it is, a test of one's own the text."""
    if getattr(request.node, "model", None) is not None:
        try:
            return make()
        except Exception:
            raise
        except BaseException as error:
            raise Stopped(error) from error
    try:
        return make()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | GeneratorExit | pytest.exit.Exception):
            raise
        own_words = isinstance(error, SourceError | SubjectError)
        text = str(error) if own_words else model_traceback(error)
    return pytest.fail(printable(f"{what}\n{text}"), pytrace=False)


FIXTURES = tuple(name for name in globals() if name.startswith(("tb_", "_tb_")))
