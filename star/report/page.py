"""`star report`: the files of a run -> one self-contained HTML page and the small metric files
beside it.

The page loads nothing: style and charts are inline, images are data URIs, and its content
security policy forbids the rest. Every text that comes from prompts, parameters or file names is
escaped (Jinja's autoescape; `svg` escapes its own)."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from star.config.params import Params
from star.evaluation.statistics import Interval
from star.report.comparison import compare, metrics_of
from star.report.figures import (
    SMOOTHING,
    learning_curves,
    method_colors,
    seconds_panels,
    tag_panel,
    training_statistics,
)
from star.report.images import Pair, choose_maps, choose_pairs, embedder
from star.report.judges import is_miniature, is_stand_in, published_note, task_names
from star.report.metrics import curves_csv, summary_json
from star.report.provenance import provenance
from star.report.run import ImageScore, MapRow, Run, load_run
from star.report.svg import color_class
from star.system.files import write_text_atomic

QUALITY_LABELS = {
    "preference": ("preference model", "score; a judge where it is not trained on"),
    "edges": ("edges", "share of pixels"),
    "dark": ("dark", "share of pixels"),
    "diversity": ("diversity", "mean difference of two images, of 255"),
    "feature_diversity": ("feature diversity", "1 minus cosine of two images"),
}
SECOND_READERS = {"ppocrv6": "PP-OCRv6", "template": "a template reader"}  # as tables name them


@dataclass(frozen=True)
class Gallery:
    """Before/after pairs of one task."""

    task: str
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Strip:
    """Saved allocation maps of one training."""

    task: str
    method: str
    rows: tuple[MapRow, ...]


def write_report(params: Params, params_path: Path, results: Path, output: Path) -> None:
    """Write the page to ``output``, and ``summary.json`` and ``curves.csv`` to ``results/metrics``.

    Args:
        params: the run's parameters; `params.runs` says which checkpoints there are.
        params_path: the file they came from, for the page's provenance.
        results: the run's folder.
        output: the HTML file.

    Raises:
        StarError: a missing or malformed file of the run; nothing has been written then.
    """
    run = load_run(params, results)
    page, summary, curves = (
        render_page(params, params_path, run),
        summary_json(run),
        curves_csv(run),
    )
    for path, text in (
        (results / "metrics" / "summary.json", summary),
        (results / "metrics" / "curves.csv", curves),
        (output, page),
    ):
        write_text_atomic(path, text)


def render_page(params: Params, params_path: Path, run: Run) -> str:
    """The page as text; the same run gives the same text on the same machine and commit."""
    resamples, seed = params.evaluate.bootstrap, params.seed
    galleries = [
        Gallery(task, tuple(choose_pairs(run, task, params.report.images))) for task in params.runs
    ]
    strips = [
        Strip(training.task, training.method, tuple(choose_maps(training)))
        for training in run.trainings
    ]
    judge = params.rewards.preference.path
    names = task_names(judge)
    template = environment(embedder(_shown(galleries, strips)), names).get_template("page.html.j2")
    return template.render(
        css=style_sheet(),
        params=params,
        run=run,
        comparison=compare(run, resamples, seed, judge),
        published_note=published_note(params),
        miniature=is_miniature(params),
        stand_in=is_stand_in(judge),
        all_metrics=metrics_of(judge),
        counts=_counts(run),
        colors=method_colors(run),
        curves=learning_curves(run, names),
        smoothing=SMOOTHING,
        statistics=training_statistics(run, names),
        unlogged=[training.name for training in run.trainings if not training.log],
        tags=tag_panel(run, resamples, seed),
        quality_labels=quality_labels(params),
        galleries=[gallery for gallery in galleries if gallery.pairs],
        strips=[strip for strip in strips if strip.rows],
        seconds=seconds_panels(run),
        provenance=provenance(params, params_path),
        fingerprints=[
            (checkpoint.name, checkpoint.params_fingerprint) for checkpoint in run.checkpoints
        ],
    )


def quality_labels(params: Params) -> dict[str, tuple[str, str]]:
    """Figure of the images -> its name and what it is; with the second reader's, which only OCR
    prompts have."""
    reader = SECOND_READERS.get(params.evaluate.second_reader)
    return QUALITY_LABELS | (
        {"second_reader": ("second reader", f"OCR reward by {reader}")} if reader else {}
    )


def number(value: float, signed: bool = False) -> str:
    """Three decimals below ten, two above, with a true minus sign."""
    text = f"{value:{'+' if signed else ''}.{3 if abs(value) < 9.9995 else 2}f}"
    return text.replace("-", "\u2212")


def interval(value: Interval, signed: bool = False) -> str:
    """``[low, high]``."""
    return f"[{number(value.low, signed)}, {number(value.high, signed)}]"


def verdict(difference: Interval) -> str:
    """``better``, ``worse`` or ``same``, where same means that the interval contains zero."""
    if not difference.excludes_zero:
        return "same"
    return "better" if difference.mean > 0 else "worse"


def image_note(image: ImageScore) -> list[str]:
    """The lines under an image: its score; for GenEval also right or wrong, for OCR also what was
    read."""
    lines = [
        number(image.detail.get("score", image.score))
    ]  # a reward may be scaled, its detail is not
    if "strict" in image.detail:
        lines[0] += " \u2713" if image.detail["strict"] else " \u2717"
    if "read" in image.detail:
        lines.append(f"\u201c{image.detail['read']}\u201d")
    return lines


def style_sheet() -> Markup:
    """The page's style sheet."""
    return Markup(resources.files("star.report").joinpath("page.css").read_text(encoding="utf-8"))


def environment(embed: Callable[[Path], str], names: Mapping[str, str]) -> Environment:
    """What renders the templates below this package: escapes all text, has the filters that the
    macros use.

    ``embed`` makes a data URI of an image; ``names`` are the tasks'.
    """
    made = Environment(
        loader=PackageLoader("star.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        number=number,
        interval=interval,
        verdict=verdict,
        note=image_note,
        color=color_class,
        embed=embed,
        task=lambda name: names[name],
        svg=Markup,  # only ever applied to the output of `svg`, which escapes its texts
    )
    return made


def _shown(galleries: Sequence[Gallery], strips: Sequence[Strip]) -> int:
    """Number of images of the page."""
    count = sum(len(pair.images) for gallery in galleries for pair in gallery.pairs)
    return count + sum(1 + len(row.maps) for strip in strips for row in strip.rows)


def _counts(run: Run) -> dict[str, tuple[int, int]]:
    """Benchmark -> test prompts, images."""
    images = Counter(image.task for image in run.base.images)
    prompts = Counter(task for task, _ in {(image.task, image.id) for image in run.base.images})
    return {task: (prompts[task], count) for task, count in images.items()}
