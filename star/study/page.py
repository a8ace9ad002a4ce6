"""`star study-report`: the runs of the study -> one self-contained HTML page and its tables."""

import math
from pathlib import Path

from star.config.params import Params, fingerprint
from star.config.references import FIRST
from star.report.html import render
from star.report.judges import task_names
from star.report.page import quality_labels
from star.report.provenance import git_commit, package_versions
from star.study.comparison import ALLOCATION_SHARE, FORWARD_SHARE, load_study
from star.study.figures import learning_curves
from star.study.intervals import t_quantile
from star.study.tables import tables
from star.system.files import write_text_atomic

LOG_LABELS = {
    "clip_fraction": ("clip fraction", "of what the objective clips"),
    "grad_norm": ("gradient norm", "before clipping"),
    "ratio_max": ("greatest ratio", "of an epoch"),
    "map_entropy": ("map entropy", "1 = flat"),
}


def write_study(params: Params, runs_folder: Path, output: Path) -> None:
    """Write the page to ``output``, and `tables.tables` next to it.

    Args:
        params: `params.study` says which runs there are.
        runs_folder: their files, ``{task}-{method}-{seed}-{rate}.json``.
        output: the HTML file.

    Raises:
        StarError: a missing or malformed file of a run; nothing has been written then.
    """
    settings, names = params.study, task_names(params.rewards.preference.path)
    study = load_study(params, runs_folder)
    files = tables(settings.seeds, study)
    compared = {
        frozenset((task.task, method.name, versus.name))
        for task in study.tasks
        for method in task.methods
        for versus in (method.first, method.uniform, method.control)
        if versus
    }
    page = render(
        "study/page.html.j2",
        names,
        params=params,
        study=study,
        files=list(files),
        first=FIRST,
        shares=(FORWARD_SHARE, ALLOCATION_SHARE),
        curves={task.task: learning_curves(task, names) for task in study.tasks},
        watch_labels=quality_labels(settings.second_reader)
        | {"preference": (names["preference"], "logit; not trained against")}
        | {"unnamed": ("unnamed things", "an image; those beyond the prompt's")},
        log_labels=LOG_LABELS,
        quantile=t_quantile(settings.seeds),
        half_width=t_quantile(settings.seeds) / math.sqrt(settings.seeds),
        comparisons=len(compared),
        provenance=[
            ("Git commit", git_commit(Path.cwd())),
            ("Parameter fingerprint", fingerprint(params)),
            ("Packages", package_versions()),
        ],
    )
    for name, text in files.items():
        write_text_atomic(output.parent / name, text)
    write_text_atomic(output, page)
