"""The small metric files that DVC shows: `summary.json` and `curves.csv`."""

import csv
import io
import json

from star.report.comparison import Comparison
from star.report.run import Run

CURVE_KEYS = (
    *("epoch", "images", "reward_mean", "reward_std", "held_out", "ratio_mean", "clip_fraction"),
    *("kl", "grad_norm", "map_entropy", "images_per_s"),
)


def summary_json(comparison: Comparison) -> str:
    """Return checkpoint -> benchmark -> metric -> mean, low, high: six digits, sorted keys."""
    summary: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for checkpoint, cells in comparison.cells.items():
        for metric, cell in zip(comparison.metrics, cells, strict=True):
            benchmark = summary.setdefault(checkpoint, {}).setdefault(metric.task, {})
            ends = vars(cell.score)  # mean, low, high
            benchmark[metric.key] = {name: round(value, 6) for name, value in ends.items()}
    return json.dumps(summary, indent=2, sort_keys=True) + "\n"


def gains(run: Run, comparison: Comparison) -> list[str]:
    """Return a line for each training: its own benchmark before and after, the paired gain."""
    lines = []
    for k, metric in enumerate(comparison.metrics):
        for trained in (c for c in run.trained if metric.headline and c.task == metric.task):
            before, after = (comparison.cells[c.name][k] for c in (run.base, trained))
            gain = after.difference
            assert gain is not None  # base alone has none
            lines.append(
                f"{trained.name}: {metric.key} {before.score.mean:.3f} -> {after.score.mean:.3f}, "
                f"gain {gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"
            )
    return lines


def curves_csv(run: Run) -> str:
    """Return one line per training and epoch, from 0 (untrained); what was not logged is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("task", "method", *CURVE_KEYS))
    for training in run.trainings:
        for row in training.log:
            writer.writerow((training.task, training.method, *map(row.get, CURVE_KEYS)))
    return text.getvalue()
