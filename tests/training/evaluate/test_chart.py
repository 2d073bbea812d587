"""The drawer of all figures: where values are put, and what tells lines apart."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from ps_sglang.training.chart import Axis, Panel, Point, chart, nice

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*panels: Panel, columns: int | None = None) -> ElementTree.Element:
    return ElementTree.fromstring(chart(panels, columns))


def dots(root: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in root.iter(f"{SVG}circle")]


def texts(root: ElementTree.Element) -> list[str | None]:
    return [text.text for text in root.iter(f"{SVG}text")]


@pytest.mark.parametrize(
    ("value", "expected"), [(0.031, 0.04), (1, 1), (1.1, 2), (7, 8), (9, 10), (300, 400)]
)
def test_axes_end_at_round_numbers(value: float, expected: float) -> None:
    assert nice(value) == pytest.approx(expected)


def test_points_lie_where_their_values_are() -> None:
    line = [Point(4, 100), Point(0, 0), Point(2, 25)]
    panel = Panel("A & B", Axis("x"), Axis("y", high=100), {"one": line, "two": []})
    root = drawn(panel)
    assert dots(root) == [(0, 240), (160, 180), (320, 0)]
    assert [line.get("points") for line in root.iter(f"{SVG}polyline")] == [
        "0.0,240.0 160.0,180.0 320.0,0.0",
        "",
    ]
    assert texts(root)[0] == "A & B"
    assert texts(root)[-2:] == ["one", "two"]


def test_what_lies_beyond_an_axis_is_drawn_at_its_end() -> None:
    panel = Panel("", Axis("x", low=1, high=3), Axis("y", high=10), {"a": [Point(5, 20)]})
    assert dots(drawn(panel)) == [(320, 0)]


def test_a_logarithmic_axis_gives_each_factor_the_same_length() -> None:
    line = [Point(1, 0.01), Point(100, 1), Point(10_000, 100)]
    root = drawn(Panel("", Axis("x", log=True), Axis("y", log=True), {"a": line}))
    assert dots(root) == [(0, 240), (160, 120), (320, 0)]
    assert texts(root)[1:11] == [
        *("0.01", "0.1", "1", "10", "100"),
        *("1", "10", "100", "1,000", "10,000"),
    ]


def test_a_short_logarithmic_axis_is_marked_between_powers() -> None:
    root = drawn(Panel("", Axis("x"), Axis("y", log=True), {"a": [Point(1, 3), Point(2, 18)]}))
    assert texts(root)[1:5] == ["2", "5", "10", "20"]


def test_a_logarithmic_axis_shows_one_value_and_nothing_at_zero() -> None:
    root = drawn(Panel("", Axis("x", log=True), Axis("y", log=True), {"a": [Point(1, 0)]}))
    assert dots(root) == [(0, 240)]


def test_intervals_of_two_lines_stand_beside_each_other() -> None:
    lines = {"a": [Point(1, 4, 2, 8)], "b": [Point(1, 4, 4, 4)]}
    root = drawn(Panel("", Axis("x", high=2), Axis("y"), lines))
    assert dots(root) == [(158, 120), (162, 120)]
    assert [bar.attrib["d"] for bar in root.iter(f"{SVG}path")] == [
        "M158.0 180.0V0.0M155.0 180.0h6M155.0 0.0h6",
        "M162.0 120.0V120.0M159.0 120.0h6M159.0 120.0h6",
    ]


def test_a_line_has_one_look_in_all_panels_and_rows_follow_each_other() -> None:
    one, two = [Point(1, 1)], [Point(1, 2)]
    panels = [
        Panel("first", Axis("x"), Axis("y"), {"a": one, "b": two}),
        Panel("second", Axis("x"), Axis("y"), {"b": two}),
        Panel("third", Axis("x"), Axis("y"), {"c": one}),
    ]
    root = drawn(*panels, columns=2)
    places = [group.attrib["transform"] for group in root.iter(f"{SVG}g")]
    assert places == ["translate(70 40)", "translate(484 40)", "translate(70 380)"]
    a, b, again, c = (line.attrib["stroke"] for line in root.iter(f"{SVG}polyline"))
    assert b == again
    assert len({a, b, c}) == 3
    assert texts(root)[-3:] == ["a", "b", "c"]
