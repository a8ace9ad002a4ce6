"""`star compare`: two or more runs -> a table for the terminal and one self-contained HTML page.

The page is made as the report's is: it loads nothing, and every text from a file is escaped.
"""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from markupsafe import Markup

from star.report.compare.content import (
    choose_pairs,
    differing_parameters,
    figures_of,
    judge_of,
    tasks_of,
    without_log,
    without_parameters,
)
from star.report.compare.runs import ComparedRun, load_runs
from star.report.compare.text import show
from star.report.comparison import Comparison, compare
from star.report.figures import IMAGES_AXIS, SMOOTHING, Panel, reward_curve
from star.report.images import embedder
from star.report.judges import task_names
from star.report.page import environment, style_sheet
from star.report.run import Run
from star.report.svg import legend, line_chart
from star.system.errors import StarError
from star.system.files import write_text_atomic

RESAMPLES, SEED = (
    2000,
    0,
)  # of the bootstrap, as params.yaml has them: runs may come without parameters
IMAGES = 6  # prompts shown a task


def compare_runs(folders: Sequence[Path], output: Path | None) -> str:
    """Write the page to ``output``, if that is given, and return the table for the terminal.

    The same folders give the same bytes.

    Args:
        folders: ``results/evaluate/<checkpoint>`` of two or more runs; differences are to the
            first.
        output: the HTML file.

    Raises:
        StarError: what `load_runs` and the report's table refuse, or a damaged image; nothing has
    been written then."""
    if output is not None and output.is_dir():
        raise StarError(f"{output}: a folder; give the name of the HTML file to write")
    runs = load_runs(folders)
    first, *others = (run.checkpoint for run in runs)
    comparison = compare(
        Run(first, tuple(others), ()), RESAMPLES, SEED, judge_of(runs)
    )  # the first in base's place
    table = show(runs, comparison)
    if output is not None:
        write_text_atomic(output, render_page(runs, comparison))
    return table


def render_page(runs: Sequence[ComparedRun], comparison: Comparison) -> str:
    """The page as text."""
    galleries = {task: choose_pairs(runs, task, IMAGES) for task in tasks_of(runs)}
    shown = sum(len(pair.images) for pairs in galleries.values() for pair in pairs)
    called = task_names(judge_of(runs))
    return (
        environment(embedder(shown), called)
        .get_template("compare/page.html.j2")
        .render(
            css=style_sheet() + Markup(_style()),
            runs=runs,
            colors={run.label: color for color, run in enumerate(runs)},
            comparison=comparison,
            resamples=RESAMPLES,
            smoothing=SMOOTHING,
            curves=learning_curves(runs, called),
            unlogged=without_log(runs),
            parameters=differing_parameters(runs),
            recorded=sum(run.parameters is not None for run in runs),
            unrecorded=without_parameters(runs),
            figures={task: names for task in galleries if (names := figures_of(runs, task))},
            galleries=galleries,
        )
    )


def learning_curves(runs: Sequence[ComparedRun], names: Mapping[str, str]) -> list[Panel]:
    """Mean training reward by images seen, one panel a task of ``names``; a run has the colour of
    its place."""
    panels = []
    for task, name in names.items():
        logged = [
            (run, color)
            for color, run in enumerate(runs)
            if run.checkpoint.task == task and run.log
        ]
        lines = [reward_curve(run.label, color, run.log) for run, color in logged]
        chart = line_chart(lines, f"{name}: reward", IMAGES_AXIS, "mean reward")
        if chart:
            panels.append(
                Panel(name, legend([(run.label, color) for run, color in logged]), (chart,))
            )
    return panels


def _style() -> str:
    return resources.files("star.report.compare").joinpath("page.css").read_text(encoding="utf-8")
