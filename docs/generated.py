"""The parts of the docs that the code knows best: Markdown, made when the docs are built.

A line ``<!-- generated: NAME ARGUMENT... -->`` is replaced by what the function NAME here returns,
so that no check, option, fixture or public name can be missing or out of date.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import reasons

import pytest_transformer_validate
from pytest_transformer_validate import fixtures as fixtures_module
from pytest_transformer_validate import hookspec, options, test_functions, training
from pytest_transformer_validate.checks.registry import all_checks
from pytest_transformer_validate.evidence.deviations import DEVIATIONS
from pytest_transformer_validate.evidence.mutants import MUTANTS
from pytest_transformer_validate.evidence.mutants.families import FAMILIES
from pytest_transformer_validate.measures import tolerance
from pytest_transformer_validate.training.data.lightning import Loaders

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pytest_transformer_validate.checks.registry import Check
    from pytest_transformer_validate.evidence.mutants import Mutant

ROOT = Path(__file__).parent.parent
PACKAGE = pytest_transformer_validate.__name__
# Classes that are made when Lightning is there, by what they get beside it.
STAND_INS = {"SimpleDataModule": Loaders}
PLACE = re.compile(r"^<!-- generated: (.+?) -->$", re.MULTILINE)
# Files of the top folder that are pages here too.
PROJECT = {
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}


def fill(text: str) -> str:
    """The text of a page with what is generated, and links to the top folder turned to its pages.

    Raises KeyError for a name that is no function here.
    """

    def made(place: re.Match[str]) -> str:
        name, *arguments = place[1].split()
        return PARTS[name](*arguments)

    text = PLACE.sub(made, text)
    for file, page in PROJECT.items():
        text = re.sub(rf"\]\((?:\.\./)?{re.escape(file)}", f"]({page}", text)
    return re.sub(r"\]\(\.\./conftest_examples/(\w+)\)", r"](#\1)", text)


def overview() -> str:
    """Every check in a line, with a link to its section."""
    rows = [
        (
            f"[{check.name}](checks-tier{check.tier}.md#{check.name})",
            _markdown(check.summary),
            _tasks(check),
        )
        for check in all_checks()
    ]
    return _table(("check", "what holds", "tasks"), rows)


def checks(tier: str) -> str:
    """A section for each check of a tier."""
    return "\n\n".join(_section(check) for check in all_checks() if check.tier == int(tier))


def limits() -> str:
    """Why the limits are what they are, in the words of their home."""
    return _markdown(_paragraphs(tolerance)[1])


def option_table() -> str:
    """Every option: flag, what it takes, what it is for."""
    rows = []
    for option in options.OPTIONS:
        taken = "" if option.ini_type == "bool" else f" {option.metavar}"
        rows.append((f"`{option.flag}{taken}`", f"`{option.name}`", _markdown(option.help)))
    return _table(("option", "ini key", "what it is for"), rows)


def ini_table() -> str:
    """Keys of the ini file without an option."""
    keys = {**options.INI_ONLY, "tb_api_url": options.API_URL}
    return _table(("ini key", ""), [(f"`{key}`", _markdown(text)) for key, text in keys.items()])


def fixture_table() -> str:
    """Every fixture, with its docstring."""
    tree = ast.parse(inspect.getsource(fixtures_module))
    found = [
        (f"`{node.name}`", _markdown(" ".join((ast.get_docstring(node) or "").split())))
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("tb_")
    ]
    return _table(("fixture", ""), found)


def hooks() -> str:
    """Every hook, by its docstring."""
    names = [name for name in vars(hookspec) if name.startswith("pytest_tb_")]
    lines = [f".. autofunction:: {hookspec.__name__}.{name}" for name in names]
    return _rst(lines)


def api(part: str) -> str:
    """Every public name of a part of the package, by its docstring."""
    home = {
        "package": pytest_transformer_validate,
        "training": training,
        "test_functions": test_functions,
    }[part]
    return _rst(line for name in home.__all__ for line in _auto(home.__name__, name))


def examples() -> str:
    """Every folder of conftest_examples: its conftest.py and its tests."""
    lines = []
    for folder in sorted(path for path in (ROOT / "conftest_examples").iterdir() if path.is_dir()):
        lines += [f"## {folder.name}", ""]
        for file in sorted(folder.glob("*.py")):
            if file.name != "model.py":
                text = file.read_text(encoding="utf-8").rstrip()
                lines += [f"`{file.name}`", "", f"```python\n{text}\n```", ""]
    return "\n".join(lines)


def page(file: str) -> str:
    """A page of the top folder. Its links into docs/ lead to the pages beside."""
    return (ROOT / file).read_text(encoding="utf-8").replace("](docs/", "](")


PARTS: dict[str, Callable[..., str]] = {
    function.__name__: function
    for function in (
        overview,
        checks,
        limits,
        option_table,
        ini_table,
        fixture_table,
        hooks,
        api,
        examples,
        page,
    )
}


def _section(check: Check) -> str:
    first, *more = _paragraphs(check.function)
    parts = [f"## {check.name}", f"**{_markdown(first)}**", *map(_markdown, more)]
    parts += [_facts(check), *_catches(check), *_spares(check)]
    return "\n\n".join(parts)


def _facts(check: Check) -> str:
    facts = {"Tasks": _tasks(check)}
    if check.cases:
        facts["Cases"] = _codes(check.cases)
    if check.limits:
        facts["Limits"] = _codes(f"{name} = {value:g}" for name, value in check.limits.items())
    if check.budgets:
        facts["[Budgets](ci.md#against-an-older-run)"] = _codes(b.limit for b in check.budgets)
    if check.slow:
        facts["Runs"] = "where it is asked for, by `-m slow`, its id or `-k` and its name"
    return "  \n".join(f"{name}: {value}" for name, value in facts.items())


def _catches(check: Check) -> Iterator[str]:
    mutants = [mutant for mutant in MUTANTS.values() if mutant.check == check.name]
    if not mutants:
        yield "No mutant is named for it."
        return
    families: dict[str, list[Mutant]] = defaultdict(list)
    for mutant in mutants:
        families[mutant.family].append(mutant)
    yield "What it catches:"
    yield _table(
        ("mistake", "mutants", "in models", "caught"),
        [
            (
                FAMILIES[family],
                str(len(found)),
                str(len({mutant.parent for mutant in found})),
                str(sum(not mutant.undetectable for mutant in found)),
            )
            for family, found in families.items()
        ],
    )
    lost = [mutant for mutant in mutants if mutant.undetectable]
    if lost:
        yield "What no check can see:"
        yield _list(f"{_sentence(m.why)}: {_sentence(m.undetectable)}" for m in lost)


def _spares(check: Check) -> Iterator[str]:
    skips = reasons.skips(check.function)
    if skips:
        yield "Skipped, with one of these reasons:"
        yield _list(map(_markdown, skips))
    notes = reasons.notes(check.function)
    if notes:
        yield "Passed, and noted in the record:"
        yield _list(map(_markdown, notes))
    known: dict[str, list[str]] = defaultdict(list)
    for architecture, declared in DEVIATIONS.items():
        for name, reason in declared.items():
            if name.partition("[")[0] == check.name:
                known[reason].append(f"`{architecture}`")
    if known:
        yield "Architectures of transformers in which it does not hold:"
        yield _list(f"{', '.join(names)}: {_markdown(reason)}" for reason, names in known.items())


def _auto(module: str, name: str) -> list[str]:
    if name in STAND_INS:
        return _described(module, name, STAND_INS[name])
    value = getattr(importlib.import_module(module), name)
    if not callable(value):
        return [f".. py:data:: {module}.{name}", "", f"   ``{value!r}``", ""]
    kind = "autoclass" if inspect.isclass(value) else "autofunction"
    lines = [f".. {kind}:: {module}.{name}"]
    if kind == "autoclass":
        lines.append("   :members:")
    if module != PACKAGE and name in pytest_transformer_validate.__all__:
        lines.append("   :no-index:")  # described once, under the shorter name
    return [*lines, ""]


def _described(module: str, name: str, methods: type) -> list[str]:
    from sphinx.ext.napoleon import Config, GoogleDocstring

    lines = GoogleDocstring(inspect.getdoc(methods) or "", Config()).lines()
    head = f".. py:class:: {module}.{name}{inspect.signature(methods)}"
    return [head, "", *(f"   {line}" for line in lines), ""]


def _rst(lines: Iterable[str]) -> str:
    return "\n".join(["```{eval-rst}", *lines, "```"])


def _paragraphs(documented: object) -> list[str]:
    text = inspect.getdoc(documented) or ""
    return [" ".join(part.split()) for part in text.split("\n\n")]


def _tasks(check: Check) -> str:
    return "all" if check.tasks is None else ", ".join(sorted(check.tasks))


def _codes(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _sentence(text: str) -> str:
    return _markdown(" ".join(textwrap.dedent(text).split()))


def _markdown(text: str) -> str:
    """Text of a docstring or a message."""
    return text.replace("``", "`").replace("**", r"\*\*").replace("<", "&lt;")


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    cells = ([cell.replace("|", r"\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
