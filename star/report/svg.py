"""Inline SVG charts as pure functions of their data.

Colours come from the page's style sheet (classes ``c0`` to ``c6``). Charts are drawn at about the
width of a phone, so that their text stays readable there, and scale with their container. All text
is escaped here. Coordinates are pixels of the view box, y down."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import chain

from star.evaluation.statistics import Interval

COLORS = 7  # classes c0 (base) to c6 in page.css; further ones repeat from c1
LINE_WIDTH, BAR_WIDTH = 340, 400  # of the view box
BAR, BAR_GAP = 11, 12  # heights in `bar_chart`
STACK, STACK_GAP = 16, 8  # heights in `stacked_bars`
TOP = 8  # of the first bar


@dataclass(frozen=True)
class Line:
    """A curve, broken by NaN; `faint` is drawn thin behind it, `low` to `high` as a band.

    These three are as long as `x`, or empty. `dotted` is dashed, with a dot at each point."""

    label: str
    color: int
    x: Sequence[float]
    y: Sequence[float]
    faint: Sequence[float] = ()
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dotted: bool = False


@dataclass(frozen=True)
class Bar:
    """One bar of a row of `bar_chart`."""

    label: str
    color: int
    value: Interval


def color_class(color: int) -> str:
    """Return the style sheet's class of a colour: 0 is base, the others count from 1 and repeat."""
    return f"c{0 if color == 0 else 1 + (color - 1) % (COLORS - 1)}"


def ticks(low: float, high: float) -> list[float]:
    """Return three to six round values inside [low, high]; needs low < high.

    Their step is 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(high - low))
    values: list[float] = []
    for step in (m * power for m in (5, 2, 1, 0.5, 0.2)):
        if len(values) < 3:
            first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
            values = [k * step for k in range(first, last + 1)]
    return values


def tick_labels(values: Sequence[float]) -> list[str]:
    """Label equally spaced values with the decimals of their step, or as 2e-5 if all are tiny."""
    exponent = math.floor(math.log10(values[1] - values[0]) + 1e-9)
    if max(map(abs, values)) < 1e-3:
        labels = [f"{round(v / 10.0**exponent)}e{exponent}" if v else "0" for v in values]
    else:
        labels = [f"{value:,.{max(0, -exponent)}f}" for value in values]
    return [label.replace("-", "\u2212") for label in labels]


def line_chart(
    lines: Sequence[Line],
    title: str,
    x_label: str,
    y_label: str,
    height: int = 240,
    y_range: tuple[float, float] | None = None,
) -> str:
    """Draw curves over one x axis; an empty string if no line has a finite point.

    ``y_range``: the least and the greatest value that the y axis must show, for charts that share
    one; None: those of the lines."""
    values = chain.from_iterable((*line.y, *line.faint, *line.low, *line.high) for line in lines)
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    left, right, top, bottom = 58, LINE_WIDTH - 18, 26, height - 40
    every_x = [x for line in lines for x in line.x]
    x_low, x_high = min(every_x), max(every_x)
    if x_low == x_high:
        x_low, x_high = x_low - 1, x_high + 1
    y_low, y_high = _padded(*(y_range or (min(finite), max(finite))))
    place_x, place_y = _scale(x_low, x_high, left, right), _scale(y_low, y_high, bottom, top)

    parts = [_text("axis-label", 4, 14, y_label)]
    for value, label in _labelled_ticks(y_low, y_high):
        y = place_y(value)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
        parts.append(_text("tick", left - 7, f"{y + 4:.1f}", label, "end"))
    for value, label in _labelled_ticks(x_low, x_high):
        parts.append(_text("tick", f"{place_x(value):.1f}", bottom + 17, label, "middle"))
    parts.append(f'<path class="frame" d="M{left} {bottom}H{right}"/>')
    parts.append(_text("axis-label", right, height - 5, x_label, "end"))
    for line in lines:
        name, x = color_class(line.color), [place_x(value) for value in line.x]
        y_of, faint, low, high = (
            [place_y(value) for value in part] for part in (line.y, line.faint, line.low, line.high)
        )
        if low:
            parts.append(_band(name, x, low, high))
        if faint:
            parts.append(f'<path class="faint {name}" d="{_path(x, faint)}"/>')
        dashed = " dashed" if line.dotted else ""
        parts.append(f'<path class="line{dashed} {name}" d="{_path(x, y_of)}"/>')
        for px, py in zip(x, y_of, strict=True) if line.dotted else ():
            parts.append(f'<circle class="dot {name}" cx="{px:.1f}" cy="{py:.1f}" r="3.5"/>')
    return _svg(title, LINE_WIDTH, height, parts)


def bar_chart(rows: Sequence[tuple[str, Sequence[Bar]]], title: str, axis_label: str) -> str:
    """Draw groups of horizontal bars from zero, with whiskers and the value behind each."""
    values = [bar.value for _, group in rows for bar in group]
    if not values:
        return ""
    left, right = 100, BAR_WIDTH - 44
    low = min(0.0, *(value.low for value in values))
    high = max(1e-9, *(value.high for value in values))
    place = _scale(low, high, left, right)
    parts, y = [], float(TOP)
    for label, group in rows:
        parts.append(_text("row", left - 8, f"{y + BAR * len(group) / 2 + 4:.1f}", label, "end"))
        for bar in group:
            value = bar.value
            start, end = sorted((place(0), place(value.mean)))
            rect = f'x="{start:.1f}" y="{y + 1}" width="{end - start:.1f}" height="{BAR - 2}"'
            whisker = f"M{place(value.low):.1f} {y + BAR / 2}H{place(value.high):.1f}"
            words = escape(f"{label}, {bar.label}: {value.mean:.3f}")
            parts += [
                f'<g><title>{words}</title><rect class="fill {color_class(bar.color)}" {rect}/>',
                f'<path class="whisker" d="{whisker}"/></g>',
                _text("value", BAR_WIDTH - 2, y + 9, f"{value.mean:.2f}", "end"),
            ]
            y += BAR
        y += BAR_GAP
    axis = _bottom_axis(low, high, place, y - BAR_GAP + 4, axis_label)  # first: under the bars
    return _svg(title, BAR_WIDTH, y + 28, axis + parts)


def stacked_bars(
    rows: Sequence[tuple[str, Mapping[str, float]]],
    colors: Mapping[str, int],
    title: str,
    unit: str,
) -> str:
    """Draw horizontal bars whose segments add up, with the total behind each.

    Args:
        rows: label of a bar, and its segments: name -> value, not negative.
        colors: of the segments by name, in the order in which they stand.
    """
    ordered = [{name: group[name] for name in colors if name in group} for _, group in rows]
    totals = [sum(group.values()) for group in ordered]
    longest = max(totals, default=0)
    if longest <= 0:
        return ""
    left, right = min(200, 16 + 6 * max(len(label) for label, _ in rows)), BAR_WIDTH - 62
    parts, y, scale = [], TOP, (right - left) / longest
    for (label, _), group, total in zip(rows, ordered, totals, strict=True):
        parts.append(_text("row", left - 8, y + 12, label, "end"))
        x = float(left)
        for name, value in group.items():
            width = value * scale
            place = f'x="{x:.1f}" y="{y}" width="{width:.1f}" height="{STACK}"'
            words = escape(f"{label}, {name}: {value:.1f} {unit}")
            fill = f"fill {color_class(colors[name])}"
            parts.append(f'<rect class="{fill}" {place}><title>{words}</title></rect>')
            x += width
        parts.append(_text("value", f"{x + 6:.1f}", y + 12, f"{total:,.1f} {unit}"))
        y += STACK + STACK_GAP
    axis = _bottom_axis(0, longest, _scale(0, longest, left, right), y - STACK_GAP + 4, unit)
    return _svg(title, BAR_WIDTH, y + 28, axis + parts)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Return the linear map of [low, high] to pixels from ``start`` to ``end``."""
    return lambda value: start + (end - start) * (value - low) / (high - low)


def _labelled_ticks(low: float, high: float) -> list[tuple[float, str]]:
    values = ticks(low, high)
    return list(zip(values, tick_labels(values), strict=True))


def _padded(low: float, high: float) -> tuple[float, float]:
    """Give a range a margin; values that are all equal get one around them."""
    margin = 0.06 * (high - low) if high > low else 0.1 * abs(low) or 0.5
    return low - margin, high + margin


def _text(kind: str, x: float | str, y: float | str, words: str, anchor: str = "") -> str:
    place = f'x="{x}" y="{y}"' + (f' text-anchor="{anchor}"' if anchor else "")
    return f'<text class="{kind}" {place}>{escape(words)}</text>'


def _path(x: Sequence[float], y: Sequence[float]) -> str:
    commands, pen = [], "M"
    for px, py in zip(x, y, strict=True):
        if math.isfinite(py):
            commands.append(f"{pen}{px:.1f} {py:.1f}")
        pen = "L" if math.isfinite(py) else "M"
    return "".join(commands)


def _band(name: str, x: Sequence[float], low: Sequence[float], high: Sequence[float]) -> str:
    pieces = zip(x, low, high, strict=True)
    known = [(px, a, b) for px, a, b in pieces if math.isfinite(a) and math.isfinite(b)]
    outline = [(px, a) for px, a, _ in known] + [(px, b) for px, _, b in reversed(known)]
    shape = _path([px for px, _ in outline], [py for _, py in outline])
    return f'<path class="band {name}" d="{shape}Z"/>' if known else ""


def _bottom_axis(
    low: float, high: float, place: Callable[[float], float], y: float, label: str
) -> list[str]:
    parts = []
    for value, text in _labelled_ticks(low, high):
        x = f"{place(value):.1f}"
        parts.append(f'<path class="grid" d="M{x} {TOP - 4}V{y}"/>')
        parts.append(_text("tick", x, y + 15, text, "middle"))
    return [*parts, _text("axis-label", 4, y + 15, label)]


def _svg(title: str, width: int, height: float, parts: Sequence[str]) -> str:
    words = escape(title)
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{words}">'
        f"<title>{words}</title>{''.join(parts)}</svg>"
    )
