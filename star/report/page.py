"""`star report`: the files of a run -> one self-contained HTML page and the small metric files."""

from collections import Counter
from pathlib import Path

from star.config.params import Params
from star.report.comparison import Comparison, compare
from star.report.figures import (
    SMOOTHING,
    learning_curves,
    logs_of,
    method_colors,
    seconds_panels,
    tag_panel,
    training_statistics,
)
from star.report.html import render
from star.report.images import choose_maps, choose_pairs, count_shown
from star.report.judges import PICKSCORE, SD35_MEDIUM, is_miniature, is_stand_in, task_names
from star.report.metrics import curves_csv, gains, summary_json
from star.report.provenance import provenance
from star.report.run import EVALUATE_AGAIN, Run, load_run
from star.system.errors import StarError
from star.system.files import write_text_atomic

# Figure of the images (`star.evaluation.image_metrics`) -> its name and what it is.
QUALITY_LABELS = {
    "preference": ("preference model", "score; a judge where it is not trained on"),
    "edges": ("edges", "share of pixels"),
    "dark": ("dark", "share of pixels"),
    "diversity": ("diversity", "mean difference of two images, of 255"),
    "feature_diversity": ("feature diversity", "1 minus cosine of two images"),
}
SECOND_READERS = {"ppocrv6": "PP-OCRv6", "template": "a template reader"}  # as tables name them


def write_report(params: Params, params_path: Path, results: Path, output: Path) -> list[str]:
    """Write the page to ``output``, and ``summary.json`` and ``curves.csv`` to ``results/metrics``.

    Returns:
        the `star.report.metrics.gains` of the run.

    Args:
        params: the run's parameters; `params.runs` says which checkpoints there are.
        params_path: the file they came from, for the page's provenance.
        results: the run's folder.
        output: the HTML file.

    Raises:
        StarError: a missing or malformed file of the run; nothing has been written then.
    """
    run, metrics = load_run(params.runs, results), results / "metrics"
    resamples, judge = params.evaluate.bootstrap, params.rewards.preference.path
    comparison = compare(run, resamples, params.seed, judge)
    page = _render(params, params_path, run, comparison)
    write_text_atomic(metrics / "summary.json", summary_json(comparison))
    write_text_atomic(metrics / "curves.csv", curves_csv(run))
    write_text_atomic(output, page)
    return gains(run, comparison)


def _render(params: Params, params_path: Path, run: Run, comparison: Comparison) -> str:
    """Return the page as text; the same run gives the same text on one machine and commit."""
    resamples, seed, judge = params.evaluate.bootstrap, params.seed, params.rewards.preference.path
    labels = quality_labels(params.evaluate.second_reader)
    _check_quality(run, list(params.runs), labels)
    galleries = {task: choose_pairs(run, task, params.report.images) for task in params.runs}
    strips = [(training, choose_maps(training)) for training in run.trainings if training.maps]
    pairs = [pair for gallery in galleries.values() for pair in gallery]
    rows = [row for _, strip in strips for row in strip]
    names, logs, counts = task_names(judge), logs_of(run), _counts(run)
    held_out = {task: min(params.train.evaluate_prompts, n) for task, (n, _) in counts.items()}
    in_order = {task: names[task] for task in params.runs}
    return render(
        "report/page.html.j2",
        names,
        count_shown(pairs, rows),
        params=params,
        run=run,
        comparison=comparison,
        miniature=is_miniature(params.model.path, params.rewards),
        stand_in=is_stand_in(judge),
        pickscore=PICKSCORE,
        sd35_medium=SD35_MEDIUM,
        counts=counts,
        colors=method_colors(run),
        curves=learning_curves(logs, in_order, held_out),
        smoothing=SMOOTHING,
        statistics=training_statistics(logs, in_order),
        unlogged=[training.name for training in run.trainings if not training.log],
        tags=tag_panel(run, resamples, seed),
        quality_labels=labels,
        galleries={task: gallery for task, gallery in galleries.items() if gallery},
        strips=strips,
        seconds=seconds_panels(run),
        provenance=provenance(params, params_path),
    )


def quality_labels(second_reader: str) -> dict[str, tuple[str, str]]:
    """Return `QUALITY_LABELS`, with the second reader's if there is one: OCR prompts have it."""
    if second_reader not in SECOND_READERS:
        return QUALITY_LABELS
    unit = f"OCR reward by {SECOND_READERS[second_reader]}"
    return QUALITY_LABELS | {"second_reader": ("second reader", unit)}


def _check_quality(run: Run, tasks: list[str], labels: dict[str, tuple[str, str]]) -> None:
    """Refuse a checkpoint that lacks a figure of the images of base's tasks or of its own."""
    for checkpoint in run.checkpoints:
        for task in tasks if checkpoint.task is None else [checkpoint.task]:
            wanted = [name for name in labels if name != "second_reader" or task == "ocr"]
            if lacking := [name for name in wanted if name not in checkpoint.quality.get(task, {})]:
                where = f"{checkpoint.name}/scores.json: quality.{task}.{lacking[0]}"
                raise StarError(f"{where}: missing; {EVALUATE_AGAIN}")


def _counts(run: Run) -> dict[str, tuple[int, int]]:
    """Return benchmark -> test prompts, images."""
    images = Counter(image.task for image in run.base.images)
    prompts = Counter(task for task, _ in {(image.task, image.id) for image in run.base.images})
    return {task: (prompts[task], count) for task, count in images.items()}
