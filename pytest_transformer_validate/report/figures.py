"""Numbers of a record as small pictures: SVG that stands in the page, drawn without a library.

What is drawn follows from the shape of a number: a matrix becomes a map (dependencies, attention),
a list, or a dict whose keys are numbers, a curve; a list with names, or another dict, bars.
Numbers of a check of one's own are drawn too.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from html import escape
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.report.text import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    Matrix = Sequence[Sequence[float]]

MOST_FIGURES = 8
MOST_CELLS = 32
MOST_BARS = 24
MOST_POINTS = 200
MOST_CURVES = 6
_NOT_DRAWN = frozenset({"value", "limit", "notes"})
_WIDTH, _LEFT, _LEVELS, _LONGEST_LABEL = 360, 60, 8, 28
_BELOW = "#c0392b"
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 2", "12 4")


@dataclass(frozen=True)
class Figure:
    """A picture; ``svg`` is markup whose texts are escaped, ``title`` plain text."""

    title: str
    svg: str


def figures(
    numbers: Mapping[str, Any], captions: Mapping[str, str] = MappingProxyType({})
) -> list[Figure]:
    """The pictures that the numbers of a record give, at most MOST_FIGURES; ``captions`` says by
    field what it shows (default: the field's name)."""
    found: list[Figure] = []
    for name, value in numbers.items():
        if name not in _NOT_DRAWN and len(found) < MOST_FIGURES:
            found += _of(name, captions.get(name, name), value, numbers)
    return found[:MOST_FIGURES]


def _of(name: str, title: str, value: Any, numbers: Mapping[str, Any]) -> Iterator[Figure]:
    if isinstance(value, dict):
        yield from _of_dict(title, value)
    elif _is_matrix(value):
        yield heat(title, value, marked=_ahead(value, numbers))
    elif _is_series(value):
        labels = _labels(value, numbers)
        yield (
            curves({name: value}, title)
            if labels is None
            else bars(dict(zip(labels, value, strict=True)), title)
        )
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        yield from _of_rows(title, value)


def _of_dict(title: str, value: dict[str, Any]) -> Iterator[Figure]:
    if len(value) > 1 and all(map(_is_number, value.values())):
        places = _places(value)
        if places is None:
            yield bars(value, title)
        else:
            yield curves({title: list(value.values())}, title, places)
    elif value and all(map(_is_matrix, value.values())):
        yield from (heat(f"{title}: {key}", each) for key, each in value.items())
    elif value and all(map(_is_series, value.values())):
        yield curves(value, title)


def _of_rows(name: str, rows: list[dict[str, Any]]) -> Iterator[Figure]:
    """Rows of one kind (layers, say): a map for every field that is a list of numbers."""
    labels = next(
        ([str(row.get(key, "")) for row in rows] for key, v in rows[0].items() if _is_text(v)), []
    )
    for key in rows[0]:
        column: list[Any] = [row.get(key) for row in rows]
        if _is_matrix(column):
            yield heat(f"{name}: {key}", column, labels)


def heat(
    title: str,
    matrix: Matrix,
    labels: Sequence[str] = (),
    marked: Collection[tuple[int, int]] = (),
) -> Figure:
    """A map: a cell is the darker the larger its number is, red below 0; those of ``marked`` (row,
    column) are red whatever they hold. At most 32 x 32 cells."""
    rows, columns = len(matrix), len(matrix[0])
    shown = [row[:MOST_CELLS] for row in matrix[:MOST_CELLS]]
    largest = max((abs(cell) for row in shown for cell in row), default=0.0)
    size = min(20, _WIDTH // max(len(shown), len(shown[0])))
    paths: dict[tuple[bool, int], list[str]] = {}
    for y, row in enumerate(shown):
        for x, cell in enumerate(row):
            level = math.ceil(_LEVELS * (abs(cell) / largest)) if largest else 0
            if (y, x) in marked:
                level = _LEVELS
            if level:
                step = f"M{x * size} {y * size}h{size}v{size}h-{size}z"
                paths.setdefault((cell < 0 or (y, x) in marked, level), []).append(step)
    parts = [
        f'<path fill="{_BELOW if below else "currentColor"}" '
        f'fill-opacity="{level / _LEVELS:g}" d="{"".join(steps)}"/>'
        for (below, level), steps in sorted(paths.items())
    ]
    width, height = size * len(shown[0]), size * len(shown)
    parts.append(f'<rect width="{width}" height="{height}" fill="none" stroke="currentColor"/>')
    parts += [
        _text(width + 6, size * (y + 0.7), name) for y, name in enumerate(labels[: len(shown)])
    ]
    cut = f", first {len(shown)} x {len(shown[0])}" if (rows, columns) != _shape(shown) else ""
    about = f"{title} ({rows} x {columns}{cut}, largest {short(largest)})"
    return _figure(about, width + (200 if labels else 0), height, parts)


def bars(values: Mapping[str, float], title: str) -> Figure:
    """A bar for every name, red below 0; at most 24 of them."""
    shown = list(values.items())[:MOST_BARS]
    largest = max(abs(number) for _, number in shown) or 1.0
    parts = []
    for row, (name, number) in enumerate(shown):
        y = row * 16
        width = max(1.0, 160 * (abs(number) / largest))
        color = _BELOW if number < 0 else "currentColor"
        parts.append(
            f'<rect x="150" y="{y + 2}" width="{width:.1f}" height="12" fill="{color}" '
            'fill-opacity="0.7"/>'
        )
        parts.append(_text(144, y + 12, name, end=True))
        parts.append(_text(156 + width, y + 12, short(number)))
    cut = f", first {len(shown)} of {len(values)}" if len(shown) < len(values) else ""
    return _figure(f"{title}{cut}", 380, 16 * len(shown), parts)


def curves(
    series: Mapping[str, Sequence[float]], title: str, places: Sequence[float] = ()
) -> Figure:
    """A line for every name over one axis; at most 6 lines of 200 points. ``places`` says where
    on the axis the points are, in ascending order (default: one step apart); the other axis then
    has 0 on it."""
    shown = {name: _thinned(line) for name, line in list(series.items())[:MOST_CURVES]}
    every = [number for line in shown.values() for number in line]
    low, high = min([*every, 0.0] if places else every), max(every)
    span = (high / 2 - low / 2) or 1.0  # halves: a difference may be too large for a float
    corner = f"M{_LEFT} 4v116h{_WIDTH - _LEFT - 4}"
    parts = [f'<path d="{corner}" fill="none" stroke="currentColor"/>']
    parts += [_text(_LEFT - 4, y, short(n), end=True) for y, n in ((12, high), (120, low))]
    below = 0
    if places:
        below = 12
        places = _thinned(places)
        parts.append(_text(_LEFT + 2, 132, f"{places[0]:g}"))
        parts.append(_text(_WIDTH - 8, 132, f"{places[-1]:g}", end=True))
    for index, (name, line) in enumerate(shown.items()):
        at = places or range(len(line))
        step = (_WIDTH - _LEFT - 10) / max(1e-9, at[-1] - at[0])
        heights = (110 * ((number / 2 - low / 2) / span) for number in line)
        points = " ".join(
            f"{_LEFT + 2 + step * (x - at[0]):.1f},{118 - height:.1f}"
            for x, height in zip(at, heights, strict=True)
        )
        dash = f' stroke-dasharray="{_DASHES[index]}"' if index else ""
        parts.append(f'<polyline points="{points}" fill="none" stroke="currentColor"{dash}/>')
        if len(shown) > 1:
            parts.append(
                f'<path d="M{_LEFT} {134 + 14 * index}h24" stroke="currentColor"{dash}/>'
                + _text(_LEFT + 30, 138 + 14 * index, name)
            )
    height = 126 + below + (14 * len(shown) + 4 if len(shown) > 1 else 0)
    longest = max(map(len, series.values()))
    return _figure(f"{title} ({longest} points)", _WIDTH, height, parts)


def short(number: float) -> str:
    """``0.123``, ``1.1e-06``, ``508,992``: three digits, or a whole number."""
    return f"{number:,.0f}" if 1e3 <= abs(number) < 1e9 else f"{number:.3g}"


def _figure(title: str, width: int, height: int, parts: Sequence[str]) -> Figure:
    title = printable(title)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" style="max-width:100%" font-family="sans-serif" '
        f'font-size="11"><title>{escape(title)}</title>'
    )
    return Figure(title, f"{head}{''.join(parts)}</svg>")


def _text(x: float, y: float, text: str, *, end: bool = False) -> str:
    shown = printable(text)
    if len(shown) > _LONGEST_LABEL:
        shown = "..." + shown[3 - _LONGEST_LABEL :]
    anchor = ' text-anchor="end"' if end else ""
    return f'<text x="{x:g}" y="{y:g}" fill="currentColor"{anchor}>{escape(shown)}</text>'


def _thinned(line: Sequence[float]) -> Sequence[float]:
    return line if len(line) <= MOST_POINTS else line[:: math.ceil(len(line) / MOST_POINTS)]


def _ahead(matrix: Matrix, numbers: Mapping[str, Any]) -> set[tuple[int, int]]:
    """Cells over the limit at a position before the token that was replaced, where the record
    says which tokens were (``tried``)."""
    tried, limit = numbers.get("tried"), numbers.get("limit")
    if not (isinstance(tried, list) and len(tried) == len(matrix) and isinstance(limit, dict)):
        return set()
    most: Any = limit.get("value")
    if not all(map(_is_number, [most, *tried])):
        return set()
    return {
        (row, position)
        for row, (token, cells) in enumerate(zip(tried, matrix, strict=True))
        for position, cell in enumerate(cells)
        if position < token and cell > most
    }


def _labels(value: list[Any], numbers: Mapping[str, Any]) -> list[str] | None:
    """Names that stand beside the numbers: another field with as many different texts."""
    for other in numbers.values():
        if isinstance(other, list) and len(other) == len(value) and all(map(_is_text, other)):
            return other if len(set(other)) == len(other) else None
    return None


def _places(value: Mapping[str, Any]) -> list[float] | None:
    """Three ascending numbers or more, as which the keys can be read."""
    try:
        found = [float(key) for key in value]
    except ValueError:
        return None
    rising = all(a < b < math.inf for a, b in itertools.pairwise(found))
    return found if rising and len(found) > 2 else None


def _shape(matrix: Matrix) -> tuple[int, int]:
    return len(matrix), len(matrix[0])


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return type(value) in {int, float} and math.isfinite(value)


def _is_series(value: Any) -> bool:
    """Three numbers or more, one of them no whole number: not a shape, not a list of ids."""
    long = isinstance(value, list) and len(value) > 2 and all(map(_is_number, value))
    return long and any(type(number) is float for number in value)


def _is_matrix(value: Any) -> bool:
    if not (isinstance(value, list) and len(value) > 1):
        return False
    if not all(isinstance(row, list) and len(row) > 1 for row in value):
        return False
    cells = [cell for row in value for cell in row]
    if len({len(row) for row in value}) > 1 or not all(map(_is_number, cells)):
        return False
    return any(type(cell) is float for cell in cells)
