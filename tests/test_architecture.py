"""The rules of ARCHITECTURE.md that a machine can check: who imports whom, and when."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pytest_transformer_validate as package

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = package.__name__
ROOT = Path(package.__file__).parent

# From the ground up: a room may import what stands below it, and knows nothing of what shares its
# line. What is imported for annotations alone is free.
FLOORS = (
    ("redaction", "identity"),
    ("errors",),
    ("task", "optional", "containment"),
    ("sources",),
    ("subject",),
    ("probe",),
    ("measures", "training"),
    ("checks",),
    ("report",),
    ("runner",),
    ("validation", "evidence"),
    ("test_functions",),
    ("tier1_critical_validation", "tier2_advanced_analysis"),
    ("options", "hookspec"),
    ("models", "resolution"),
    ("fixtures", "outcome", "conftests"),
    ("isolation",),
    ("collection",),
    ("sinks", "reporting", "progress"),
    ("naming",),
    ("ids",),
    ("start", "session"),
    ("interactive",),
    ("plugin", "notebook", "__main__"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# Modules that are imported without torch: what a pytest run imports before it has a model.
TORCH_FREE = (
    "__main__", "checks", "collection", "conftests", "containment", "errors", "fixtures",
    "hookspec", "identity", "ids", "interactive", "isolation", "measures", "models", "naming",
    "notebook", "optional", "options", "outcome", "plugin", "progress", "redaction", "report",
    "reporting", "resolution", "runner", "session", "sinks", "sources", "start", "task",
    "test_functions", "tier1_critical_validation", "tier2_advanced_analysis", "validation",
)  # fmt: skip

HEAVY = ("torch", "numpy", "transformers", "pandas", "safetensors", "matplotlib", "captum")
DEFERRED = set(HEAVY) - {"torch"}

PUBLIC = ["Check", "CheckFailed", "Measurement", "NotApplicable", "Probe", "Record", "Result"]
PUBLIC += ["Subject", "TaskSpec", "check", "validate"]


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def room_of(module: str) -> str:
    """The file or folder right under the package, ``""`` for the package itself."""
    return module.removeprefix(NAME).lstrip(".").partition(".")[0]


def imports(node: ast.AST, *, at_import: bool = False) -> Iterator[tuple[int, str]]:
    """Line and name of what is imported, but for annotations; ``at_import``: not in functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if at_import and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.Import):
            yield from ((child.lineno, alias.name) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"relative import in line {child.lineno}"
            below = child.module == NAME
            for alias in child.names:
                yield child.lineno, f"{NAME}.{alias.name}" if below else child.module or ""
        else:
            yield from imports(child, at_import=at_import)


def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def python(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_every_room_has_a_floor():
    rooms = {room_of(module) for module in MODULES} - {""}
    assert rooms - set(FLOOR) == set(), "give it a line in FLOORS and in ARCHITECTURE.md"
    assert set(FLOOR) - rooms == set(), "gone: take it out of FLOORS and of ARCHITECTURE.md"


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    here = room_of(module)
    wrong = []
    for line, name in imports(tree(module)):
        there = room_of(name)
        if not name.startswith(f"{NAME}.") or there in {here, "__version__"}:
            continue
        if here == "" or FLOOR[there] >= FLOOR[here]:
            wrong.append(f"{MODULES[module].relative_to(ROOT)}:{line} imports {name}")
    assert wrong == []


@pytest.mark.parametrize("module", MODULES)
def test_optional_packages_are_imported_where_they_are_used(module):
    top = {name.partition(".")[0] for _, name in imports(tree(module), at_import=True)}
    assert top & DEFERRED == set()


def test_nothing_heavy_is_imported_before_there_is_a_model():
    names = [NAME, *(module for module in MODULES if room_of(module) in TORCH_FREE)]
    done = python(
        "import importlib, sys\n"
        f"for name in {names}:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = sorted(sys.modules.keys() & set({HEAVY}))\n"
        "    assert not heavy, f'{name} imports {heavy}'\n"
    )
    assert done.returncode == 0, done.stderr


def test_the_page_says_which_rooms_import_torch():
    page = (ROOT.parent / "ARCHITECTURE.md").read_text(encoding="utf-8")
    (said,) = re.findall(r"^Only (.+) import torch when", page, re.MULTILINE)
    rooms = {
        room_of(m) for m in MODULES for _, n in imports(tree(m), at_import=True) if n == "torch"
    }
    assert set(re.findall(r"`(\w+)`", said)) == rooms


def test_every_module_can_be_imported_first():
    done = python(
        "import importlib, sys\n"
        "import torch\n"
        f"for name in {list(MODULES)}:\n"
        f"    for loaded in [each for each in sys.modules if each.startswith({NAME!r})]:\n"
        "        del sys.modules[loaded]\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except BaseException as error:\n"
        "        error.add_note(f'when {name} is imported first')\n"
        "        raise\n"
    )
    assert done.returncode == 0, done.stderr


def test_no_process_is_a_fork_of_this_one():
    """After torch has computed in threads, a forked child hangs at its first product."""
    wrong = re.compile(
        r"os\.fork\(|multiprocessing\.(Process|Pool|Manager)\(|get_context\((?!.spawn)"
    )
    told = [name for name in MODULES if wrong.search(ast.unparse(tree(name)))]
    assert told == []


def test_the_public_names_are_these():
    assert package.__all__ == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_there(name):
    value = getattr(package, name)
    assert value.__name__ == name
    assert value.__module__.startswith(f"{NAME}.")


def test_another_name_is_not_there():
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        _ = package.no_such_name


def test_the_plugin_is_hooks_and_little_else():
    source = (ROOT / "plugin.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 300
    functions = [node.name for node in tree(f"{NAME}.plugin").body if hasattr(node, "name")]
    assert [name for name in functions if not name.startswith("pytest_")] == []


def test_files_of_tests_have_names_of_their_own():
    names = [path.name for path in (ROOT.parent / "tests").rglob("test_*.py")]
    assert len(set(names)) == len(names), "pytest imports them by name: rename one"
