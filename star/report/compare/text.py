"""A comparison as text for a terminal: means and differences by metric, trainings, images,
parameters that differ."""

from collections.abc import Sequence

from star.evaluation.statistics import Interval
from star.report.compare.content import (
    differing_parameters,
    figures_of,
    judge_of,
    tasks_of,
    without_parameters,
)
from star.report.compare.runs import ComparedRun
from star.report.comparison import Comparison
from star.report.figures import SMOOTHING
from star.report.judges import task_names
from star.report.page import interval, number

LONGEST = 40  # characters of a parameter's value


def show(runs: Sequence[ComparedRun], comparison: Comparison) -> str:
    """The whole text; whatever of the files a terminal might obey is a question mark."""
    lines = []
    for k, metric in enumerate(comparison.metrics):
        lines += [f"{metric.label} ({metric.unit})", *_scores(runs, comparison, k), ""]
    lines += [
        f"mean [95 % interval], then the difference to {runs[0].label}, paired image by image; * zero is outside",
        *_other_evaluation(runs),
        "",
        *_trainings(runs),
        *_figures(runs),
        *_parameters(runs),
    ]
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in "\n".join(lines)).replace(
        "\u2212", "-"
    )


def _scores(runs: Sequence[ComparedRun], comparison: Comparison, metric: int) -> list[str]:
    rows = []
    for run in runs:
        cell = comparison.cells[run.label][metric]
        gap = cell.difference
        mark = "*" if gap is not None and gap.excludes_zero else ""
        rows.append(
            [
                run.label,
                *_parts(cell.score),
                *(_parts(gap, True) if gap is not None else ("", "")),
                mark,
            ]
        )
    return _aligned(rows)


def _trainings(runs: Sequence[ComparedRun]) -> list[str]:
    rows = [
        [
            "training",
            "task",
            "method",
            "epochs",
            "images drawn",
            f"reward, last {SMOOTHING} epochs",
        ]
    ]
    for run in runs:
        own, reward = run.checkpoint, run.final_reward
        counts = ["no log", "", ""]
        if reward is not None:
            counts = [f"{run.log[-1]['epoch']:,}", f"{run.log[-1]['images']:,}", number(reward)]
        rows.append(
            [run.label, own.task, str(own.method), *counts]
            if own.task
            else [run.label, "untrained"]
        )
    return _aligned(rows)


def _figures(runs: Sequence[ComparedRun]) -> list[str]:
    lines, called = [], task_names(judge_of(runs))
    for task in tasks_of(runs):
        names = figures_of(runs, task)
        if names:
            rows = [[f"images, {called[task]}", *(label for label, _ in names.values())]]
            for run in runs:
                quality = run.checkpoint.quality.get(task, {})
                rows.append(
                    [run.label, *(number(quality[n].mean) if n in quality else "-" for n in names)]
                )
            lines += ["", *_aligned(rows)]
    return lines


def _parameters(runs: Sequence[ComparedRun]) -> list[str]:
    rows = [
        [row.key, *("-" if value is None else _short(value) for value in row.values)]
        for row in differing_parameters(runs)
    ]
    lines = []
    if rows:
        lines = ["", *_aligned([["parameters that differ", *(run.label for run in runs)], *rows])]
    elif sum(run.parameters is not None for run in runs) > 1:
        lines = ["", "no recorded parameter differs"]
    missing = without_parameters(runs)
    return lines + (
        ["", f"no parameters were recorded for {', '.join(missing)}"] if missing else []
    )


def _other_evaluation(runs: Sequence[ComparedRun]) -> list[str]:
    if len({run.checkpoint.params_fingerprint for run in runs}) == 1:
        return []
    return ["evaluated with other models, rewards or settings: the scores may not be of one scale"]


def _parts(value: Interval, signed: bool = False) -> tuple[str, str]:
    return number(value.mean, signed), interval(value, signed)


def _short(value: str) -> str:
    return value if len(value) <= LONGEST else f"{value[: LONGEST - 3]}..."


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns two spaces apart, the first row's words over them; short rows end early."""
    widths = [max(len(row[k]) for row in rows if k < len(row)) for k in range(max(map(len, rows)))]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=False)).rstrip()
        for row in rows
    ]
