"""`star study-report`: the runs of the study -> one self-contained HTML page and its tables."""

import math
from pathlib import Path

from star.config.params import Params, fingerprint
from star.report.html import render
from star.report.judges import task_names
from star.report.page import quality_labels
from star.report.provenance import git_commit, package_versions
from star.study.comparison import AIM_RATIO, FLOW_GRPO, SHUFFLED, control_of, load_study
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
    resamples, seed = params.evaluate.bootstrap, params.seed
    study = load_study(settings, params.images_per_epoch, resamples, seed, runs_folder)
    files = tables(settings, study)
    results = [method for task in study.tasks for method in task.methods]
    differences = [gap for method in results for gap in (method.to_flow_grpo, method.to_control)]
    twice = len(study.tasks)  # flow_grpo with its control, and that with flow_grpo
    page = render(
        "study/page.html.j2",
        names,
        params=params,
        study=study,
        files=list(files),
        flow_grpo=FLOW_GRPO,
        shuffled=SHUFFLED,
        control=control_of(settings.methods, settings.aim),
        aim_ratio=AIM_RATIO,
        curves={task.task: learning_curves(task, names) for task in study.tasks},
        watch_labels=quality_labels(settings.second_reader)
        | {"preference": (names["preference"], "logit; not trained against")},
        log_labels=LOG_LABELS,
        quantile=t_quantile(settings.seeds),
        half_width=t_quantile(settings.seeds) / math.sqrt(settings.seeds),
        comparisons=sum(gap is not None for gap in differences) - twice,
        provenance=[
            ("Git commit", git_commit(Path.cwd())),
            ("Parameter fingerprint", fingerprint(params)),
            ("Packages", package_versions()),
        ],
    )
    for name, text in files.items():
        write_text_atomic(output.parent / name, text)
    write_text_atomic(output, page)
