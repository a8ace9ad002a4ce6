"""The small files beside the study's page: `summary.json` and the CSV tables.

Six significant digits, sorted, the same bytes for the same runs. What has no finite value is empty
(CSV) or null (JSON): the images of a method that does not reach flow_grpo's final score, an end of
an interval beyond every bound, a method's difference to itself."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from star.config.params import Params
from star.evaluation.statistics import Interval
from star.study.comparison import MethodResult, Study, TaskResult

DIGITS = 6


def tables(params: Params, study: Study) -> dict[str, str]:
    """File name -> content."""
    return {
        "summary.json": summary_json(params, study),
        "scores.csv": _csv(_score(task, method) for task in study.tasks for method in task.methods),
        "best_rates.csv": _csv(
            _rate(params, task, method, rate)
            for task in study.tasks
            for method in task.methods
            for rate in method.best.means
        ),
        "curves.csv": curves_csv(study),
        "watch.csv": _csv(
            _watch(task, method, key)
            for task in study.tasks
            for method in task.methods
            for key in method.watch
        ),
    }


def summary_json(params: Params, study: Study) -> str:
    """Task -> base, level, the aim's answer, and each method's numbers but its watch figures
    (`watch.csv`)."""
    summary = {
        task.task: {
            "base": {
                "graded": task.base_graded,
                "exact": task.base_exact,
                "watch": task.base_watch,
            },
            "flow_grpo_final": task.level,
            "held_out_images": task.held_out,
            "seeds": params.study.seeds,
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
    """One line a run and look."""
    return _csv(
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
    )


def _summary(method: MethodResult) -> dict[str, Any]:
    kept = ("graded", "exact", "to_flow_grpo", "control", "to_control", "area", "log")
    values = {key: getattr(method, key) for key in kept}
    best = {
        "rate": method.best.rate,
        "graded": method.best.graded,
        "to_flow_grpo": method.best.to_flow_grpo,
    }
    return {
        **values,
        "area_to_flow_grpo": method.area_to_flow_grpo,
        "images_to_flow_grpo_final": method.images,
        "images_ratio": method.ratio,
        "best_rate": best,
    }


def _score(task: TaskResult, method: MethodResult) -> dict[str, Any]:
    return {
        "task": task.task,
        "method": method.name,
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


def _rate(params: Params, task: TaskResult, method: MethodResult, rate: float) -> dict[str, Any]:
    best, chosen = method.best, rate == method.best.rate
    return {
        "task": task.task,
        "method": method.name,
        "rate": rate,
        "seeds": params.study.rate_seeds,
        "graded": best.means[rate],
        "best": int(chosen),
        **_ends("to_flow_grpo_at_its_best", best.to_flow_grpo if chosen else None),
    }


def _watch(task: TaskResult, method: MethodResult, key: str) -> dict[str, Any]:
    row = {"task": task.task, "method": method.name, "figure": key, "base": task.base_watch[key]}
    return {**row, "final": method.watch[key].mean, **_ends("change", method.watch_change[key])}


def _ends(name: str, value: Interval | None) -> dict[str, float | None]:
    """Three columns of an interval, `None` where there is none."""
    ends = (None, None, None) if value is None else (value.mean, value.low, value.high)
    return dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))


def _csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """A table sorted by its first columns; all rows have the same ones."""
    plain = sorted(
        (_plain(row) for row in rows), key=lambda row: [row[key] for key in row if key in _SORT]
    )
    text = io.StringIO()
    writer = csv.DictWriter(text, list(plain[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(plain)
    return text.getvalue()


_SORT = ("task", "method", "rate", "seed", "epoch", "figure")


def _plain(value: Any) -> Any:
    """Rounded, intervals as dictionaries, what is not finite as None."""
    if isinstance(value, Interval):
        return {key: _plain(getattr(value, key)) for key in ("mean", "low", "high")}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float):  # also NumPy's
        return float(f"{value:.{DIGITS}g}") + 0.0 if math.isfinite(value) else None  # no -0.0
    return value
