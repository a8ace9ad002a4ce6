"""Charts in closed form: what is drawn lies where its numbers say."""

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from star.evaluation.statistics import Interval
from star.report.svg import Bar, Line, bar_chart, line_chart, stacked_bars, tick_labels, ticks
from tests.helpers.pages import EVIL


def paths(root, kind):
    return [path.get("d") for path in root.iter("path") if path.get("class") == kind]


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e4))
def test_ticks_are_three_or_more_round_values_inside_the_range(low, span):
    values = ticks(low, low + span)
    steps = np.diff(values)
    assert 3 <= len(values) <= 8 and np.allclose(steps, steps[0])
    assert low - 1e-6 * span <= values[0] and values[-1] <= low + span * (1 + 1e-6)
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
    assert min(abs(mantissa - m) for m in (1, 2, 5)) < 1e-3
    assert len(set(tick_labels(values))) == len(values)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0, 2000, 4000], ["0", "2,000", "4,000"]),
        ([-0.5, 0.0, 0.5], ["−0.5", "0.0", "0.5"]),
        ([0.99999, 1.0, 1.00001], ["0.99999", "1.00000", "1.00001"]),
        ([0.0, 2e-5, 4e-5], ["0", "2e−5", "4e−5"]),
    ],
)
def test_tick_labels(values, labels):
    assert tick_labels(values) == labels


def test_line_chart_breaks_at_missing_values_and_escapes():
    y, ends = [0.0, math.nan, 1.0, 2.0], {"low": [0, 0, 0, 0], "high": [1, 1, 1, 1]}
    chart = line_chart([Line(EVIL, 1, [0, 1, 2, 3], y, **ends)], EVIL, EVIL, EVIL)
    root = ElementTree.fromstring(chart)
    (path,) = paths(root, "line c1")
    assert path.count("M") == 2 and path.count("L") == 1 and len(paths(root, "band c1")) == 1
    assert root.find("title").text == EVIL
    assert line_chart([Line("a", 1, [0], [math.nan])], "t", "x", "y") == ""
    assert line_chart([], "t", "x", "y") == ""


@pytest.mark.parametrize(("y_range", "drop"), [(None, 2.0 / 2.24), ((1.0, 5.0), 2.0 / 4.48)])
def test_line_chart_maps_the_extremes_to_the_frame(y_range, drop):
    line = Line("a", 1, [10, 20], [1.0, 3.0])
    chart = line_chart([line], "t", "x", "y", height=240, y_range=y_range)
    (path,) = paths(ElementTree.fromstring(chart), "line c1")
    (x0, y0), (x1, y1) = (map(float, point.split()) for point in re.split("[ML]", path)[1:])
    assert (x0, x1) == (58, 322)
    assert y0 - y1 == pytest.approx((200 - 26) * drop, abs=0.2)  # a margin of 6 % at both ends


def test_bars_are_proportional_and_whiskers_span_the_interval():
    bars = [Bar("a", 0, Interval(0.25, 0.2, 0.3)), Bar("b", 1, Interval(0.5, 0.4, 1.0))]
    root = ElementTree.fromstring(bar_chart([("tag <1>", bars)], "t", "strict"))
    short, long = (float(rect.get("width")) for rect in root.iter("rect"))
    assert long == pytest.approx(2 * short, abs=0.2)
    ends = [re.findall(r"[MH]([\d.]+)", path) for path in paths(root, "whisker")]
    first, second = (float(high) - float(low) for low, high in ends)
    assert second == pytest.approx(6 * first, abs=0.5)
    assert bar_chart([], "t", "x") == ""


def test_stacked_bars_add_up():
    rows, colors = [("a", {"q": 3.0, "p": 1.0}), ("b", {"p": 2.0})], {"p": 1, "q": 2}
    root = ElementTree.fromstring(stacked_bars(rows, colors, "t", "s"))
    p, q, _ = root.iter("rect")
    assert float(q.get("x")) == pytest.approx(float(p.get("x")) + float(p.get("width")), abs=0.11)
    assert float(q.get("width")) == pytest.approx(3 * float(p.get("width")), abs=0.2)
    assert [t.text for t in root.iter("text") if t.get("class") == "value"] == ["4.0 s", "2.0 s"]
    assert stacked_bars([("a", {})], {}, "t", "s") == "" == stacked_bars([], {}, "t", "s")
