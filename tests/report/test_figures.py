"""Pictures of numbers: what is drawn of what, how large, and nothing of a model as markup."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from pytest_transformer_validate.report import html
from pytest_transformer_validate.report.figures import MOST_FIGURES, Figure, figures
from pytest_transformer_validate.report.record import Record

SVG = "{http://www.w3.org/2000/svg}"
TOKEN = "ghp_" + "x" * 36
HOSTILE = f'</title></svg><script>"x"</script>{TOKEN}\x1b[2J'


def only(**numbers: Any) -> tuple[Figure, ElementTree.Element]:
    (figure,) = figures({"value": 1.5, "limit": {"value": 2.0, "rule": "u"}, **numbers})
    return figure, ElementTree.fromstring(figure.svg)


def record(**numbers: Any) -> Record:
    return Record(model="m.py", tier=1, check="c", status="failed", numbers=numbers)


def test_a_matrix_is_a_map_the_darker_the_larger() -> None:
    figure, svg = only(effects=[[0.0, 4.0], [-2.0, 0.5]])
    assert figure.title == "effects (2 x 2, largest 4)"
    cells = {
        (path.get("fill"), path.get("fill-opacity")): path.get("d")
        for path in svg.iter(f"{SVG}path")
    }
    assert cells == {
        ("currentColor", "1"): "M20 0h20v20h-20z",
        ("currentColor", "0.125"): "M20 20h20v20h-20z",
        ("#c0392b", "0.5"): "M0 20h20v20h-20z",
    }, "nothing is drawn for 0"


@pytest.mark.parametrize("tried", [[1, 2], ["1", "2"], [1], None, [1, None]])
def test_what_sees_a_later_token_is_red(tried: Any) -> None:
    numbers = {"limit": {"value": 0.1, "rule": "u"}, "effects": [[0.2, 0.8], [0.1, 0.4]]}
    (figure,) = figures({**numbers, "tried": tried})
    red = [
        path.get("d")
        for path in ElementTree.fromstring(figure.svg).iter(f"{SVG}path")
        if path.get("fill") == "#c0392b"
    ]
    expected = "M0 0h20v20h-20zM20 20h20v20h-20z" if tried == [1, 2] else None
    assert red == ([expected] if expected else []), "0.1 is not over the limit"


def test_matrices_by_name_are_maps_and_rows_of_one_kind_are_one() -> None:
    picture = [[0.5, 0.5], [0.25, 0.75]]
    drawn = figures({"pictures": {"first": picture, "last": picture}})
    assert [f.title for f in drawn] == [
        "pictures: first (2 x 2, largest 0.75)",
        "pictures: last (2 x 2, largest 0.75)",
    ]
    layers = [{"module": f"h.{n}", "entropy": [0.1 * n, 1.0, 0.5], "length": 8} for n in range(3)]
    figure, svg = only(layers=layers)
    assert figure.title == "layers: entropy (3 x 3, largest 1)"
    assert [text.text for text in svg.iter(f"{SVG}text")] == ["h.0", "h.1", "h.2"]


def test_a_list_is_a_curve_and_with_names_bars() -> None:
    figure, svg = only(losses=[3.0, 2.0, 1.5, 1.0])
    assert figure.title == "losses (4 points)"
    (line,) = svg.iter(f"{SVG}polyline")
    heights = [float(point.split(",")[1]) for point in line.get("points", "").split()]
    assert heights == sorted(heights), "it falls: larger is further down"
    _, svg = only(modules=["a", "b", "c"], changes=[0.5, -1.0, 0.25])
    rects = list(svg.iter(f"{SVG}rect"))
    assert [rect.get("width") for rect in rects] == ["80.0", "160.0", "40.0"]
    assert [rect.get("fill") for rect in rects] == ["currentColor", "#c0392b", "currentColor"]
    _, svg = only(activations={"2x8": 100, "4x8": 200})
    assert [text.text for text in svg.iter(f"{SVG}text")] == ["2x8", "100", "4x8", "200"]
    figure, svg = only(moved={"2": 0.5, "4": 1.0, "16": 0.0})
    assert figure.title == "moved (3 points)"
    (line,) = svg.iter(f"{SVG}polyline")
    places = [float(point.split(",")[0]) for point in line.get("points", "").split()]
    assert places[2] - places[1] == pytest.approx(6 * (places[1] - places[0]), rel=0.01)
    assert [text.text for text in svg.iter(f"{SVG}text")] == ["1", "0", "2", "16"]
    _, svg = only(curves={"train": [1.0, 0.5, 0.1], "val": [1.0, 0.9, 0.8]})
    assert [text.text for text in svg.iter(f"{SVG}text")][2:] == ["train", "val"]


def test_a_caption_says_what_is_drawn() -> None:
    (figure,) = figures({"depth": {"a": 1.0, "b": 2.0}}, {"depth": "gradient norms"})
    assert figure.title == "gradient norms"
    assert "<title>gradient norms</title>" in figure.svg


@pytest.mark.parametrize(
    "numbers",
    [
        {"shape": [2, 8, 64]},
        {"ids": [[1, 2], [3, 4]]},
        {"pair": [1.0, 2.0]},
        {"bad": ["nan", 1.0, 2.0]},
        {"ragged": [[1.0, 2.0], [3.0]]},
        {"one": {"a": 1.0}},
        {"flags": [True, False, True]},
        {"empty": [], "none": None, "text": "x", "nothing": {}, "rows": [{}, {}]},
        {"value": [1.0, 2.0, 3.0], "notes": ["a", "b", "c"]},
    ],
    ids=lambda numbers: next(iter(numbers)),
)
def test_what_says_nothing_is_not_drawn(numbers: dict[str, Any]) -> None:
    assert figures(numbers) == []


@pytest.mark.parametrize(
    "numbers",
    [
        {"large": [[float(x * y) for x in range(500)] for y in range(500)]},
        {"long": [float(n) for n in range(100_000)]},
        {"many": {f"name {n}": float(n) for n in range(5000)}},
        {"lines": {f"name {n}": [0.5] * 5000 for n in range(500)}},
        {f"n{n}": [1.0, 2.0, 4.0] for n in range(500)},
    ],
    ids=lambda numbers: next(iter(numbers)),
)
def test_a_picture_is_small_whatever_the_numbers(numbers: dict[str, Any]) -> None:
    drawn = figures(numbers)
    assert 1 <= len(drawn) <= MOST_FIGURES
    for figure in drawn:
        assert len(figure.svg) < 40_000
        svg = ElementTree.fromstring(figure.svg)
        assert int(svg.get("width", "")) <= 600
        assert int(svg.get("height", "")) <= 700
    assert len(html.folded(record(**numbers))) < 80_000


def test_equal_and_extreme_numbers_are_drawn() -> None:
    for line in ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [-1e308, 0.0, 1e308]):
        assert not re.search("inf|nan", only(line=line)[0].svg)
        ElementTree.fromstring(only(matrix=[line, line])[0].svg)
        shown = only(bars=dict(zip("abc", line, strict=True)))[0].svg
        assert not {"inf", "nan"} & set(re.findall("inf|nan", shown))


def test_no_text_is_markup() -> None:
    numbers = {
        "names": [HOSTILE, "b", "c"],
        "changes": [1.0, 2.5, 3.0],
        HOSTILE: [[1.0, 2.0], [3.0, 4.5]],
        "more": {HOSTILE: 1.0, "x": 2.0},
        "notes": [HOSTILE],
    }
    drawn = figures(numbers)
    assert len(drawn) == 3
    for figure in drawn:
        tags = {element.tag for element in ElementTree.fromstring(figure.svg).iter()}
        assert tags <= {f"{SVG}{name}" for name in ("svg", "title", "path", "rect", "text")}
    shown = html.folded(record(**numbers))
    assert "<script" not in shown
    assert TOKEN not in shown
    assert "\x1b" not in shown
    assert "<summary>3 figures, 1 note</summary>" in shown
    assert html.folded(record()) == ""
