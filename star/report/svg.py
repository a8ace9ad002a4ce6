"""Inline SVG charts as pure functions of their data.

Colours come from the page's style sheet (classes ``c0`` to ``c6``). Charts are drawn at about the
width of a phone, so that their text stays readable there, and scale with their container. All text
is escaped here. Coordinates are pixels of the view box, y down."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from star.evaluation.statistics import Interval

COLORS = 7  # classes c0 (base) to c6 in page.css; further ones repeat from c1
LINE_WIDTH, BAR_WIDTH = 340, 400  # of the view box


@dataclass(frozen=True)
class Line:
    """A curve, broken by NaN; `faint` is drawn thin behind it, `low` to `high` as a band: as long
    as `x`, or empty."""

    label: str
    color: int
    x: Sequence[float]
    y: Sequence[float]
    faint: Sequence[float] = ()
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Bar:
    """One bar of a row of `bar_chart`."""

    label: str
    color: int
    value: Interval


@dataclass(frozen=True)
class Segment:
    """One part of a stacked bar; `value` is not negative."""

    label: str
    color: int
    value: float


def color_class(color: int) -> str:
    """Style sheet class of a colour index: 0 is base, methods and phases count from 1 and
    repeat."""
    return f"c{0 if color == 0 else 1 + (color - 1) % (COLORS - 1)}"


def ticks(low: float, high: float) -> list[float]:
    """Three to six round values inside [low, high], in steps of 1, 2 or 5 times a power of ten;
    needs low < high."""
    power = 10.0 ** math.floor(math.log10(high - low))
    values: list[float] = []
    for step in (m * power for m in (5, 2, 1, 0.5, 0.2)):
        if len(values) < 3:
            first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
            values = [k * step for k in range(first, last + 1)]
    return values


def tick_labels(values: Sequence[float]) -> list[str]:
    """Short labels of equally spaced values: the decimals that their step needs, or 2e-5 where all
    are tiny."""
    step = values[1] - values[0]
    exponent = math.floor(math.log10(step) + 1e-9)
    if max(map(abs, values)) < 1e-3:
        labels = [
            f"{round(value / 10.0**exponent)}e{exponent}" if value else "0" for value in values
        ]
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
    """Curves over one x axis; an empty string if no line has a finite point.

    ``y_range``: the least and the greatest value that the y axis must show, for charts that share
    one; None: these."""
    shown = [
        value
        for line in lines
        for part in (line.y, line.faint, line.low, line.high)
        for value in part
    ]
    finite = [value for value in shown if math.isfinite(value)]
    if not finite:
        return ""
    left, right, top, bottom = 58, LINE_WIDTH - 18, 26, height - 40
    x_low, x_high = (
        min(x for line in lines for x in line.x),
        max(x for line in lines for x in line.x),
    )
    x_low, x_high = (x_low, x_high) if x_high > x_low else (x_low - 1, x_high + 1)
    y_low, y_high = _padded(*(y_range or (min(finite), max(finite))))

    def place_x(x: float) -> float:
        return left + (right - left) * (x - x_low) / (x_high - x_low)

    def place_y(y: float) -> float:
        return bottom - (bottom - top) * (y - y_low) / (y_high - y_low)

    parts = [f'<text class="axis-label" x="4" y="14">{escape(y_label)}</text>']
    y_ticks = ticks(y_low, y_high)
    for value, label in zip(y_ticks, tick_labels(y_ticks), strict=True):
        y = place_y(value)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
        parts.append(
            f'<text class="tick" x="{left - 7}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
        )
    x_ticks = ticks(x_low, x_high)
    for value, label in zip(x_ticks, tick_labels(x_ticks), strict=True):
        parts.append(
            f'<text class="tick" x="{place_x(value):.1f}" y="{bottom + 17}" text-anchor="middle">{label}</text>'
        )
    parts.append(f'<path class="frame" d="M{left} {bottom}H{right}"/>')
    parts.append(
        f'<text class="axis-label" x="{right}" y="{height - 5}" text-anchor="end">{escape(x_label)}</text>'
    )
    for line in lines:
        name, x = color_class(line.color), [place_x(value) for value in line.x]
        if line.low:
            parts.append(
                _band(name, x, [place_y(v) for v in line.low], [place_y(v) for v in line.high])
            )
        if line.faint:
            parts.append(
                f'<path class="faint {name}" d="{_path(x, [place_y(v) for v in line.faint])}"/>'
            )
        parts.append(f'<path class="line {name}" d="{_path(x, [place_y(v) for v in line.y])}"/>')
    return _svg(title, LINE_WIDTH, height, parts)


def bar_chart(rows: Sequence[tuple[str, Sequence[Bar]]], title: str, axis_label: str) -> str:
    """Grouped horizontal bars from zero with interval whiskers and the value written behind
    each."""
    left, right, top, thick, gap = 100, BAR_WIDTH - 44, 8, 11, 12
    bars = [bar for _, group in rows for bar in group]
    if not bars:
        return ""
    high = max(1e-9, *(bar.value.high for bar in bars))
    low = min(0.0, *(bar.value.low for bar in bars))

    def place(value: float) -> float:
        return left + (right - left) * (value - low) / (high - low)

    parts, y = [], float(top)
    for label, group in rows:
        middle = y + thick * len(group) / 2
        parts.append(
            f'<text class="row" x="{left - 8}" y="{middle + 4:.1f}" text-anchor="end">{escape(label)}</text>'
        )
        for bar in group:
            start, end = sorted((place(0), place(bar.value.mean)))
            rect = f'x="{start:.1f}" y="{y + 1}" width="{end - start:.1f}" height="{thick - 2}"'
            whisker = f"M{place(bar.value.low):.1f} {y + thick / 2}H{place(bar.value.high):.1f}"
            words = escape(f"{label}, {bar.label}: {bar.value.mean:.3f}")
            parts += [
                f'<g><title>{words}</title><rect class="fill {color_class(bar.color)}" {rect}/>',
                f'<path class="whisker" d="{whisker}"/></g>',
                f'<text class="value" x="{BAR_WIDTH - 2}" y="{y + 9}" text-anchor="end">{bar.value.mean:.2f}</text>',
            ]
            y += thick
        y += gap
    axis = _bottom_axis(
        low, high, left, right, top, y - gap + 4, axis_label
    )  # first: under the bars
    return _svg(title, BAR_WIDTH, y + 28, axis + parts)


def stacked_bars(rows: Sequence[tuple[str, Sequence[Segment]]], title: str, unit: str) -> str:
    """Horizontal bars whose segments add up, with the total written behind."""
    left = min(200, 16 + 6 * max((len(label) for label, _ in rows), default=0))
    right, top, thick, gap = BAR_WIDTH - 62, 8, 16, 8
    totals = [sum(segment.value for segment in group) for _, group in rows]
    if not totals or max(totals) <= 0:
        return ""
    parts, y, scale = [], top, (right - left) / max(totals)
    for (label, group), total in zip(rows, totals, strict=True):
        parts.append(
            f'<text class="row" x="{left - 8}" y="{y + 12}" text-anchor="end">{escape(label)}</text>'
        )
        x = float(left)
        for segment in group:
            width = segment.value * scale
            place = f'x="{x:.1f}" y="{y}" width="{width:.1f}" height="{thick}"'
            words = escape(f"{label}, {segment.label}: {segment.value:.1f} {unit}")
            parts.append(
                f'<rect class="fill {color_class(segment.color)}" {place}><title>{words}</title></rect>'
            )
            x += width
        written = f"{total:,.1f} {unit}"
        parts.append(f'<text class="value" x="{x + 6:.1f}" y="{y + 12}">{escape(written)}</text>')
        y += thick + gap
    axis = _bottom_axis(0, max(totals), left, right, top, y - gap + 4, unit)
    return _svg(title, BAR_WIDTH, y + 28, axis + parts)


def legend(entries: Sequence[tuple[str, int]]) -> str:
    """Names with their colours as an HTML list, which wraps on a narrow screen."""
    items = (
        f'<li><span class="swatch {color_class(color)}"></span>{escape(label)}</li>'
        for label, color in entries
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _padded(low: float, high: float) -> tuple[float, float]:
    """A range with a margin; values that are all equal get one around them."""
    margin = 0.06 * (high - low) if high > low else 0.1 * abs(low) or 0.5
    return low - margin, high + margin


def _path(x: Sequence[float], y: Sequence[float]) -> str:
    commands, pen = [], "M"
    for px, py in zip(x, y, strict=True):
        if math.isfinite(py):
            commands.append(f"{pen}{px:.1f} {py:.1f}")
        pen = "L" if math.isfinite(py) else "M"
    return "".join(commands)


def _band(name: str, x: Sequence[float], low: Sequence[float], high: Sequence[float]) -> str:
    points = [
        (px, a, b)
        for px, a, b in zip(x, low, high, strict=True)
        if math.isfinite(a) and math.isfinite(b)
    ]
    outline = [(px, a) for px, a, _ in points] + [(px, b) for px, _, b in reversed(points)]
    return (
        f'<path class="band {name}" d="{_path([p for p, _ in outline], [q for _, q in outline])}Z"/>'
        if points
        else ""
    )


def _bottom_axis(
    low: float, high: float, left: int, right: int, top: int, y: float, label: str
) -> list[str]:
    parts, values = [], ticks(low, high)
    for value, text in zip(values, tick_labels(values), strict=True):
        x = left + (right - left) * (value - low) / (high - low)
        parts.append(f'<path class="grid" d="M{x:.1f} {top - 4}V{y}"/>')
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{y + 15}" text-anchor="middle">{text}</text>'
        )
    parts.append(f'<text class="axis-label" x="4" y="{y + 15}">{escape(label)}</text>')
    return parts


def _svg(title: str, width: int, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
