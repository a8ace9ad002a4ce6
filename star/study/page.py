"""`star study-report`: the runs of the study -> one self-contained HTML page, and small tables
beside it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from star.config.params import Params, fingerprint
from star.evaluation.statistics import Interval
from star.report.judges import task_names
from star.report.page import SECOND_READERS, interval, number, verdict
from star.report.provenance import git_commit, package_versions
from star.study.comparison import (
    AIM_RATIO,
    FLOW_GRPO,
    SHUFFLED,
    Answer,
    Study,
    TaskResult,
    control_of,
    load_study,
)
from star.study.figures import learning_curves
from star.study.intervals import t_quantile
from star.study.tables import tables
from star.system.files import write_text_atomic

WATCH_LABELS = {
    "edges": ("edges", "share of pixels"),
    "dark": ("dark", "share of pixels"),
    "diversity": ("diversity", "mean difference of two images, of 255"),
}
LOG_LABELS = {
    "clip_fraction": ("clip fraction", "of what the objective clips"),
    "grad_norm": ("gradient norm", "before clipping"),
    "ratio_max": ("greatest ratio", "of an epoch"),
    "map_entropy": ("map entropy", "1 = flat"),
}


def write_study(params: Params, runs_folder: Path, output: Path) -> None:
    """Write the page to ``output``, and `tables.tables` beside it.

    Args:
        params: `params.study` says which runs there are.
        runs_folder: their files, ``{task}-{method}-{seed}-{rate}.json``.
        output: the HTML file.

    Raises:
        StarError: a missing or malformed file of a run; nothing has been written then.
    """
    study = load_study(params, runs_folder)
    files = tables(params, study)
    page = render_study(params, study, list(files))
    for name, text in files.items():
        write_text_atomic(output.parent / name, text)
    write_text_atomic(output, page)


def render_study(params: Params, study: Study, files: Sequence[str]) -> str:
    """The page as text; it links to ``files``, names beside it."""
    names = task_names(params.rewards.preference.path)
    template = _environment(names).from_string(_asset("star.study", "page.html.j2"))
    differences = [
        d for task in study.tasks for m in task.methods for d in (m.to_flow_grpo, m.to_control)
    ]
    twice = len(study.tasks)  # flow_grpo with its control, and that with flow_grpo
    reader = SECOND_READERS[params.study.second_reader]
    return template.render(
        css=Markup(_asset("star.report", "page.css") + _asset("star.study", "page.css")),
        params=params,
        study=study,
        files=files,
        flow_grpo=FLOW_GRPO,
        shuffled=SHUFFLED,
        control=control_of(params.study.methods, params.study.aim),
        aim_ratio=AIM_RATIO,
        answers={task.task: list(answer(task)) for task in study.tasks},
        curves={task.task: learning_curves(task, names) for task in study.tasks},
        watch_labels={"preference": (names["preference"], "logit; not trained against")}
        | WATCH_LABELS
        | {"second_reader": ("second reader", f"OCR reward by {reader}")},
        log_labels=LOG_LABELS,
        quantile=t_quantile(params.study.seeds),
        half_width=t_quantile(params.study.seeds) / math.sqrt(params.study.seeds),
        comparisons=sum(d is not None for d in differences) - twice,
        provenance=[
            ("Git commit", git_commit(Path.cwd())),
            ("Parameter fingerprint", fingerprint(params)),
            (
                "Packages",
                ", ".join(f"{name} {version}" for name, version in package_versions().items()),
            ),
        ],
    )


def answer(task: TaskResult) -> Iterator[str]:
    """The two sentences on the aim: images against flow_grpo, final score against its control."""
    found = task.answer
    yield _images_sentence(found)
    gap = f"{number(found.to_control.mean, True)} {interval(found.to_control, True)}"
    if found.beats_control:
        yield f"Its final score beats that of {found.control}, by {gap}: the interval excludes zero."
    elif found.to_control.high < 0:
        yield f"Its final score is behind that of {found.control}, by {gap}: the interval excludes zero."
    else:
        yield (
            f"Its final score minus that of {found.control} is {gap}: the interval contains zero, so these seeds do "
            "not show that it is better."
        )


def _images_sentence(found: Answer) -> str:
    aim, bounds = times(AIM_RATIO), ends(found.ratio)
    if not found.level_above_base:
        return (
            f"{FLOW_GRPO} ended no higher than base, so that its final score is reached without training: the images "
            f"that {found.method} needs to reach it say nothing."
        )
    if math.isinf(found.ratio.mean):
        start = f"{found.method} does not reach the final score of {FLOW_GRPO} within the run, {bounds}: "
    else:
        ratio = f"{times(found.ratio.mean)} its images {bounds}"
        start = f"{found.method} reaches the final score of {FLOW_GRPO} with {ratio}: "
    if found.fewer_images:
        start += f"at most {aim}"
        return start + (
            ", and so says the whole interval."
            if found.fewer_images_settled
            else f", but the interval goes beyond {aim}: these seeds do not settle it."
        )
    start += f"not at most {aim}"
    return start + (
        ", and the interval excludes it."
        if found.fewer_images_settled
        else f", though the interval contains {aim}: these seeds do not settle it."
    )


def times(ratio: float) -> str:
    """A ratio of images; one that is infinite, of a level that was not reached, is at least above
    one."""
    return "> 1" if math.isinf(ratio) else f"{ratio:.2f}\u00d7"


def ends(ratio: Interval) -> str:
    """``[low, high]`` of a ratio of images."""
    return f"[{times(ratio.low)}, {times(ratio.high)}]"


def bounded(value: Interval, signed: bool = False) -> str:
    """``[low, high]``, or nothing for a single seed."""
    return interval(value, signed) if math.isfinite(value.low) else ""


def _environment(names: Mapping[str, str]) -> Environment:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        number=number,
        bounded=bounded,
        verdict=verdict,
        times=times,
        ends=ends,
        task=lambda name: names[name],
        svg=Markup,  # only ever applied to the output of `svg`, which escapes its texts
    )
    environment.tests["infinite"] = math.isinf
    return environment


def _asset(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")
