"""Panels of charts: learning curves, training statistics, GenEval tags, seconds per phase."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from star.report.comparison import metrics_of, tag_scores
from star.report.run import Run
from star.report.svg import Bar, Line, bar_chart, line_chart, stacked_bars

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
    """A heading over some charts (SVG) that share a legend of labels and colours."""

    title: str
    legend: tuple[tuple[str, int | None], ...]  # None: text alone
    charts: tuple[str, ...]


@dataclass(frozen=True)
class TrainingLog:
    """The log of one training, one dict an epoch, and how charts show it."""

    task: str
    label: str
    color: int
    rows: tuple[dict, ...]

    def column(self, key: str) -> list[float]:
        """Return the values of a key; NaN where it is not a number."""
        values = [row.get(key) for row in self.rows]
        return [float(value) if isinstance(value, int | float) else math.nan for value in values]

    def line(self, key: str) -> Line:
        """Return a statistic by images seen."""
        line = Line(self.label, self.color, self.column("images"), self.column(key))
        if key == "ratio_mean":
            return replace(line, low=self.column("ratio_min"), high=self.column("ratio_max"))
        return line

    def reward(self) -> Line:
        """Return the mean reward: each epoch faint behind a running mean, once there are enough."""
        trained = replace(self, rows=tuple(row for row in self.rows if row["epoch"] > 0))
        images, reward = trained.column("images"), trained.column("reward_mean")
        if len(reward) < 2 * SMOOTHING:
            return Line(self.label, self.color, images, reward)
        return Line(self.label, self.color, images, running_mean(reward, SMOOTHING), faint=reward)

    def held_out(self) -> Line:
        """Return the points of held-out prompts."""
        scored = replace(self, rows=tuple(row for row in self.rows if "held_out" in row))
        images, scores = scored.column("images"), scored.column("held_out")
        return Line(self.label, self.color, images, scores, dotted=True)


def method_colors(run: Run) -> dict[str, int]:
    """Return a colour for each method, the same in every chart; base is 0."""
    methods = dict.fromkeys(training.method for training in run.trainings)
    return {method: color for color, method in enumerate(methods, 1)}


def logs_of(run: Run) -> list[TrainingLog]:
    """Return the logs of a run's trainings, those that have one."""
    colors = method_colors(run)
    return [TrainingLog(t.task, t.method, colors[t.method], t.log) for t in run.trainings if t.log]


def learning_curves(
    logs: Sequence[TrainingLog], names: Mapping[str, str], prompts: Mapping[str, int] | None = None
) -> list[Panel]:
    """Draw the mean reward by images seen, of training and held out, one panel a task of ``names``.

    Args:
        prompts: held-out prompts by task, for the legend.
    """
    panels = []
    for task, name in names.items():
        own = [log for log in logs if log.task == task]
        tested = [line for log in own if (line := log.held_out()).x]
        lines = [log.reward() for log in own] + tested
        legend = _legend(own)
        if tested:
            count = f"{prompts[task]} prompts, " if prompts else ""
            marks = "━ training reward", f"┄●┄ held-out ({count}EMA)"
            legend += tuple((mark, None) for mark in marks)
        if chart := line_chart(lines, f"{name}: reward", IMAGES_AXIS, "mean reward"):
            panels.append(Panel(name, legend, (chart,)))
    return panels


def training_statistics(logs: Sequence[TrainingLog], names: Mapping[str, str]) -> list[Panel]:
    """Draw what the optimiser did, one panel a task; what was never logged has no chart."""
    panels = []
    for task, name in names.items():
        own = [log for log in logs if log.task == task]
        charts = []
        for key, label in STATISTICS.items():
            lines = [line for log in own if any(map(math.isfinite, (line := log.line(key)).y))]
            charts.append(line_chart(lines, f"{name}: {label}", IMAGES_AXIS, label, height=200))
        if any(charts):
            panels.append(Panel(name, _legend(own), tuple(filter(None, charts))))
    return panels


def tag_panel(run: Run, resamples: int, seed: int) -> Panel:
    """Draw GenEval scores by tag of base and what was trained on GenEval, else of everything."""
    colors, own = method_colors(run), [c for c in run.trained if c.task == "geneval"]
    shown = [(c.name, k, c) for k, c in enumerate(run.checkpoints)]
    if own:
        methods = ((c.method or c.name, colors[c.method or ""], c) for c in own)
        shown = [("base", 0, run.base), *methods]
    charts = []
    for metric in (metric for metric in metrics_of(None) if metric.task == "geneval"):
        scores = [(*entry[:2], tag_scores(entry[2], metric, resamples, seed)) for entry in shown]
        tags = scores[0][2]
        rows = [(tag, [Bar(label, color, s[tag]) for label, color, s in scores]) for tag in tags]
        charts.append(bar_chart(rows, f"{metric.label} by tag", metric.key))
    legend = tuple((label, color) for label, color, _ in shown)
    return Panel("Strict: share right. Soft: partial credit.", legend, tuple(charts))


def seconds_panels(run: Run) -> list[Panel]:
    """Draw the seconds per phase, summed over a training's epochs, and of each evaluation."""
    training = [(t.name, _phases(t.log)) for t in run.trainings if t.log]
    evaluation = [(c.name, c.seconds) for c in run.checkpoints]
    panels = [_seconds("Training", training), _seconds("Evaluation", evaluation)]
    return [panel for panel in panels if panel is not None]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Average each value with up to ``window - 1`` before it; a NaN makes its windows NaN."""
    return [
        sum(values[max(0, k - window + 1) : k + 1]) / min(window, k + 1) for k in range(len(values))
    ]


def _legend(logs: Sequence[TrainingLog]) -> tuple[tuple[str, int | None], ...]:
    return tuple((log.label, log.color) for log in logs)


def _phases(log: Sequence[dict]) -> dict[str, float]:
    totals: dict[str, float] = defaultdict(float)
    for row in log:
        for phase, seconds in (row.get("seconds") or {}).items():
            totals[phase] += float(seconds)
    return totals


def _seconds(title: str, rows: Sequence[tuple[str, Mapping[str, float]]]) -> Panel | None:
    names = dict.fromkeys(phase for _, seconds in rows for phase in seconds)
    colors = {phase: color for color, phase in enumerate(names, 3)}  # no method's colours
    longest = max((sum(seconds.values()) for _, seconds in rows), default=0.0)
    unit, divisor = ("min", 60.0) if longest > 300 else ("s", 1.0)
    bars = [(name, {phase: s / divisor for phase, s in seconds.items()}) for name, seconds in rows]
    chart = stacked_bars(bars, colors, f"{title}: time per phase", unit)
    return Panel(title, tuple(colors.items()), (chart,)) if chart else None
