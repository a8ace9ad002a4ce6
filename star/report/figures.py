"""The report's charts, made of a run: learning curves, training statistics, GenEval tags, seconds
per phase."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from star.report.comparison import METRICS, tag_scores
from star.report.run import Run, Training
from star.report.svg import Bar, Line, Segment, bar_chart, legend, line_chart, stacked_bars

SMOOTHING = 5  # epochs of the running mean in learning curves
# Log key -> what is drawn; the ratio also gets a band from its least to its greatest value.
STATISTICS = {
    "ratio_mean": "ratio: mean, least to greatest",
    "clip_fraction": "clip fraction",
    "kl": "KL to the base model",
    "grad_norm": "gradient norm before clipping",
    "map_entropy": "entropy of the maps (1 = flat)",
}
IMAGES_AXIS = "training images seen"


@dataclass(frozen=True)
class Panel:
    """A heading over some charts (SVG) that share a legend (HTML)."""

    title: str
    legend: str
    charts: tuple[str, ...]


def method_colors(run: Run) -> dict[str, int]:
    """A colour index for each method, the same in every chart; base is 0."""
    methods = dict.fromkeys(training.method for training in run.trainings)
    return {method: index for index, method in enumerate(methods, 1)}


def learning_curves(run: Run, names: Mapping[str, str]) -> list[Panel]:
    """Mean training reward by images seen, one panel a task; ``names`` are the tasks'."""
    panels = []
    for task, trainings in _logged(run).items():
        lines = [reward_curve(t.method, method_colors(run)[t.method], t.log) for t in trainings]
        chart = line_chart(lines, f"{names[task]}: reward", IMAGES_AXIS, "mean reward")
        panels.append(_panel(run, names[task], trainings, [chart]))
    return panels


def training_statistics(run: Run, names: Mapping[str, str]) -> list[Panel]:
    """Small multiples of what the optimiser did, one panel a task; a statistic that was never
    logged has no chart."""
    panels = []
    for task, trainings in _logged(run).items():
        charts = []
        for key, label in STATISTICS.items():
            lines = [_statistic(t, key, method_colors(run)[t.method]) for t in trainings]
            drawn = [line for line in lines if any(map(math.isfinite, line.y))]
            charts.append(
                line_chart(drawn, f"{names[task]}: {label}", IMAGES_AXIS, label, height=200)
            )
        panels.append(_panel(run, names[task], trainings, charts))
    return panels


def tag_panel(run: Run, resamples: int, seed: int) -> Panel | None:
    """GenEval scores per tag, base against what was trained on GenEval (against everything, if
    nothing was)."""
    if "geneval" not in run.base.benchmarks:
        return None
    own = [checkpoint for checkpoint in run.trained if checkpoint.task == "geneval"]
    shown = [(c.name, c, k) for k, c in enumerate([run.base, *run.trained])]
    if own:
        shown = [
            ("base", run.base, 0),
            *((c.method or c.name, c, method_colors(run)[c.method or ""]) for c in own),
        ]
    charts = []
    for metric in METRICS:
        if metric.task == "geneval":
            scores = [
                (label, color, tag_scores(c, metric, resamples, seed)) for label, c, color in shown
            ]
            rows = [
                (tag, [Bar(label, color, s[tag]) for label, color, s in scores])
                for tag in scores[0][2]
            ]
            charts.append(bar_chart(rows, f"{metric.label} by tag", metric.key))
    return Panel(
        "Strict: share right. Soft: partial credit.",
        legend([(label, color) for label, _, color in shown]),
        tuple(charts),
    )


def seconds_panels(run: Run) -> list[Panel]:
    """Seconds per phase, summed over a training's epochs, and of each evaluation."""
    training = [(t.name, _sum_phases(t.log)) for t in run.trainings if t.log]
    panels = [
        _seconds("Training", training),
        _seconds("Evaluation", [(c.name, c.seconds) for c in run.checkpoints]),
    ]
    return [panel for panel in panels if panel is not None]


def reward_curve(label: str, color: int, log: Sequence[dict]) -> Line:
    """Mean reward of a training by images seen: each epoch faint behind a running mean, once there
    are enough."""
    images, reward = _column(log, "images"), _column(log, "reward_mean")
    if len(reward) < 2 * SMOOTHING:
        return Line(label, color, images, reward)
    return Line(label, color, images, running_mean(reward, SMOOTHING), faint=reward)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value and up to ``window - 1`` values before it; a NaN makes its windows NaN."""
    return [
        sum(values[max(0, k - window + 1) : k + 1]) / min(window, k + 1) for k in range(len(values))
    ]


def _logged(run: Run) -> dict[str, list[Training]]:
    tasks = dict.fromkeys(training.task for training in run.trainings if training.log)
    return {task: [t for t in run.trainings if t.task == task and t.log] for task in tasks}


def _panel(run: Run, title: str, trainings: Sequence[Training], charts: Sequence[str]) -> Panel:
    entries = [(training.method, method_colors(run)[training.method]) for training in trainings]
    return Panel(title, legend(entries), tuple(chart for chart in charts if chart))


def _column(log: Sequence[dict], key: str) -> list[float]:
    values = [row.get(key) for row in log]
    return [float(value) if isinstance(value, int | float) else math.nan for value in values]


def _statistic(training: Training, key: str, color: int) -> Line:
    low, high = ("ratio_min", "ratio_max") if key == "ratio_mean" else ("", "")
    band = {"low": _column(training.log, low), "high": _column(training.log, high)} if low else {}
    return Line(
        training.method, color, _column(training.log, "images"), _column(training.log, key), **band
    )


def _sum_phases(log: Sequence[dict]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for row in log:
        for phase, seconds in (row.get("seconds") or {}).items():
            totals[phase] = totals.get(phase, 0.0) + float(seconds)
    return totals


def _seconds(title: str, rows: Sequence[tuple[str, dict[str, float]]]) -> Panel | None:
    names = dict.fromkeys(phase for _, seconds in rows for phase in seconds)
    phases = {
        phase: color for color, phase in enumerate(names, 3)
    }  # colours that two methods do not have
    longest = max((sum(seconds.values()) for _, seconds in rows), default=0.0)
    unit, divisor = ("min", 60.0) if longest > 300 else ("s", 1.0)
    bars = [
        (
            name,
            [
                Segment(phase, color, seconds[phase] / divisor)
                for phase, color in phases.items()
                if phase in seconds
            ],
        )
        for name, seconds in rows
    ]
    chart = stacked_bars(bars, f"{title}: time per phase", unit)
    return Panel(title, legend(list(phases.items())), (chart,)) if chart else None
