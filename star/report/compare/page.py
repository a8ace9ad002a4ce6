"""`star compare`: two or more runs -> a table for the terminal and one self-contained HTML page."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from star.config.differences import MISSING, differences
from star.config.params import TASKS
from star.report.compare.runs import ComparedRun, load_runs
from star.report.compare.text import show
from star.report.comparison import compare, image_values, metrics_of
from star.report.figures import SMOOTHING, learning_curves
from star.report.html import render
from star.report.images import Pair, count_shown
from star.report.judges import task_names
from star.report.page import QUALITY_LABELS
from star.report.run import Run
from star.system.errors import StarError
from star.system.files import write_text_atomic

RESAMPLES, SEED = 2000, 0  # as params.yaml has them: runs may come without parameters
IMAGES = 6  # prompts shown a task
# The metric of each task that has degrees: images that differ most in it are shown.
GRADED = {"geneval": "soft", "ocr": "reward", "preference": "score"}
SECOND_READER = ("second reader", "OCR reward by a reader that took no part in training")
FIGURES = QUALITY_LABELS | {"second_reader": SECOND_READER}


def compare_runs(folders: Sequence[Path], output: Path | None) -> str:
    """Write the page to ``output``, if that is given, and return the table for the terminal.

    The same folders give the same bytes.

    Args:
        folders: ``results/evaluate/<checkpoint>`` of two or more runs; differences are to the
            first.
        output: the HTML file.

    Raises:
        StarError: what `load_runs` and the report's table refuse, or a damaged image; nothing has
            been written then.
    """
    if output is not None and output.is_dir():
        raise StarError(f"{output}: a folder; give the name of the HTML file to write")
    runs = load_runs(folders)
    first, *others = (run.checkpoint for run in runs)  # the first in base's place
    tasks, judge = [task for task in TASKS if task in first.benchmarks], judge_of(runs)
    names, trained = task_names(judge), [run for run in runs if run.checkpoint.task]
    values = {
        "runs": runs,
        "colors": {run.label: run.color for run in runs},
        "comparison": compare(Run(first, tuple(others), ()), RESAMPLES, SEED, judge),
        "resamples": RESAMPLES,
        "smoothing": SMOOTHING,
        "parameters": differing_parameters(runs),
        "recorded": sum(run.parameters is not None for run in runs),
        "unrecorded": [run.label for run in trained if run.parameters is None],
        "unlogged": [run.label for run in trained if not run.log],
        "figures": {task: labels for task in tasks if (labels := figures_of(runs, task))},
        "one_scale": len({run.checkpoint.params_fingerprint for run in runs}) == 1,
    }
    table = show(names, values)
    if output is not None:
        galleries = {task: choose_pairs(runs, task, IMAGES) for task in tasks}
        shown = count_shown(pair for pairs in galleries.values() for pair in pairs)
        curves = learning_curves([run.training_log for run in trained if run.log], names)
        values |= {"galleries": galleries, "curves": curves}
        write_text_atomic(output, render("report/compare/page.html.j2", names, shown, **values))
    return table


def judge_of(runs: Sequence[ComparedRun]) -> str | None:
    """Return the `rewards.preference.path` that all recorded trainings on it share; None: none."""
    own = [run for run in runs if run.parameters and run.checkpoint.task == "preference"]
    rewards = [run.parameters.get("reward") for run in own if run.parameters]
    paths = {reward.get("path") for reward in rewards if isinstance(reward, dict)}
    path = paths.pop() if len(paths) == 1 else None
    return path if isinstance(path, str) else None


def choose_pairs(runs: Sequence[ComparedRun], task: str, count: int) -> list[Pair]:
    """Return the images whose graded scores lie furthest apart over the runs, one per prompt.

    Ties go by file order."""
    metric = next(m for m in metrics_of(None) if (m.task, m.key) == (task, GRADED[task]))
    spread = np.ptp([image_values(run.checkpoint, metric) for run in runs], axis=0)  # (images,)
    images = [[image for image in run.checkpoint.images if image.task == task] for run in runs]
    pairs: dict[str, Pair] = {}
    for k in np.argsort(-spread, kind="stable"):
        pair = Pair(tuple((run.label, own[k]) for run, own in zip(runs, images, strict=True)))
        pairs.setdefault(images[0][k].id, pair)
    return list(pairs.values())[:count]


def differing_parameters(runs: Sequence[ComparedRun]) -> dict[str, tuple[str | None, ...]]:
    """Return dotted keys in which the recorded parameters differ; none of fewer than two records.

    A value is JSON, one per run; None for a run that has no record."""
    recorded = [run for run in runs if run.parameters is not None]
    rows = {}
    if len(recorded) > 1:
        for key, *values in differences(*(run.parameters for run in recorded)):
            texts = dict(zip((run.label for run in recorded), map(_as_text, values), strict=True))
            rows[key] = tuple(texts.get(run.label) for run in runs)
    return rows


def figures_of(runs: Sequence[ComparedRun], task: str) -> dict[str, tuple[str, str]]:
    """Return the figures of a task's images that a run has: its name and what it is."""
    found = {name for run in runs for name in run.checkpoint.quality.get(task, ())}
    return {name: label for name, label in FIGURES.items() if name in found}


def _as_text(value: object) -> str:
    return "nothing" if value is MISSING else json.dumps(value, sort_keys=True, ensure_ascii=False)
