"""The small files beside the study's page: `summary.json` and the CSV tables.

Six significant digits, sorted, the same bytes for the same runs. What has no finite value is empty
(CSV) or null (JSON): the images of a method that does not reach flow_grpo's final score, an end of
an interval beyond every bound, a method's difference to itself."""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from star.config.params import StudyParams
from star.evaluation.statistics import Interval
from star.study.comparison import MethodResult, Study, TaskResult

DIGITS = 6
SORTED_BY = ("task", "method", "rate", "seed", "epoch", "figure")
Row = dict[str, Any]


def tables(settings: StudyParams, study: Study) -> dict[str, str]:
    """Return file name -> content."""

    def table(rows: Callable[[TaskResult, MethodResult], list[Row]]) -> str:
        found = []
        for task in study.tasks:
            for method in task.methods:
                named = {"task": task.task, "method": method.name}
                found += [named | row for row in rows(task, method)]
        return _csv(found)

    return {
        "summary.json": summary_json(settings.seeds, study),
        "scores.csv": table(lambda task, method: [_scores(method)]),
        "best_rates.csv": table(lambda task, method: _rates(method, settings.rate_seeds)),
        "curves.csv": curves_csv(study),
        "watch.csv": table(_watch),
    }


def summary_json(seeds: int, study: Study) -> str:
    """Return task -> base, level, the aim's answer, and each method's numbers at the shared rate.

    Watch figures are in `watch.csv`."""
    summary = {
        task.task: {
            "base": {
                "graded": task.base_graded,
                "exact": task.base_exact,
                "watch": task.base_watch,
            },
            "flow_grpo_final": task.level,
            "held_out_images": task.held_out,
            "seeds": seeds,
            "answer": {
                "method": task.answer.method,
                "needs_at_most_0.7_of_the_images": task.answer.fewer_images,
                "interval_agrees": task.answer.fewer_images_settled,
                "control": task.answer.control,
                "beats_control": task.answer.beats_control,
                "met": task.answer.met,
            },
            "methods": {method.name: _summary(method) for method in task.methods},
        }
        for task in study.tasks
    }
    return json.dumps(_plain(summary), indent=2, sort_keys=True, allow_nan=False) + "\n"


def curves_csv(study: Study) -> str:
    """Return one line a run and look."""
    return _csv(
        [
            {
                "task": run.task,
                "method": run.method,
                "rate": run.rate,
                "seed": run.seed,
                "epoch": curve.epochs[k],
                "images": int(curve.images[k]),
                "graded": curve.graded[k],
                "exact": curve.exact[k],
            }
            for run, curve in study.curves.items()
            for k in range(len(curve.epochs))
        ]
    )


def _summary(method: MethodResult) -> Row:
    kept = "graded exact to_flow_grpo control to_control area area_to_flow_grpo log".split()
    best = method.best
    return {
        **{key: getattr(method, key) for key in kept},
        "images_to_flow_grpo_final": method.images,
        "images_ratio": method.ratio,
        "best_rate": {key: getattr(best, key) for key in ("rate", "graded", "to_flow_grpo")},
    }


def _scores(method: MethodResult) -> Row:
    return {
        **_ends("graded", method.graded),
        **_ends("exact", method.exact),
        **_ends("to_flow_grpo", method.to_flow_grpo),
        "control": method.control,
        **_ends("to_control", method.to_control),
        "images_to_flow_grpo_final": method.images,
        **_ends("images_ratio", method.ratio),
        **_ends("area", method.area),
        **_ends("area_to_flow_grpo", method.area_to_flow_grpo),
    }


def _rates(method: MethodResult, seeds: int) -> list[Row]:
    best = method.best
    return [
        {
            "rate": rate,
            "seeds": seeds,
            "graded": mean,
            "best": int(rate == best.rate),
            **_ends("to_flow_grpo_at_its_best", best.to_flow_grpo if rate == best.rate else None),
        }
        for rate, mean in best.means.items()
    ]


def _watch(task: TaskResult, method: MethodResult) -> list[Row]:
    return [
        {
            "figure": key,
            "base": task.base_watch[key],
            "final": final.mean,
            **_ends("change", method.watch_change[key]),
        }
        for key, final in method.watch.items()
    ]


def _ends(name: str, value: Interval | None) -> Row:
    """Return three columns of an interval, `None` where there is none."""
    ends = asdict(value) if value else {"mean": None, "low": None, "high": None}
    return {name if key == "mean" else f"{name}_{key}": end for key, end in ends.items()}


def _csv(rows: list[Row]) -> str:
    """Return a table sorted by its first columns; all rows have the same ones."""
    keys = [key for key in rows[0] if key in SORTED_BY]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(map(_plain, rows), key=lambda row: [row[key] for key in keys]))
    return text.getvalue()


def _plain(value: Any) -> Any:
    """Round numbers, make dictionaries of intervals and None of what is not finite."""
    if isinstance(value, Interval):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float):  # also NumPy's
        return float(f"{value:.{DIGITS}g}") + 0.0 if math.isfinite(value) else None  # no -0.0
    return value
