"""The files of the study's runs, each checked against the run that its name promises."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import AllowInfNan, Field, Strict

from star.config.consistency import MINIATURE_SIDE
from star.config.params import Params, StudyRun
from star.report.files import checked, read_object
from star.system.errors import StarError

AGAIN = "delete it and train this run again"
# By which of a look's scores methods are compared: GenEval's own is strict, OCR's is graded.
COMPARED = {"geneval": "exact", "ocr": "graded"}
WATCHED = ("preference", "edges", "dark", "diversity")  # of every run
LOGGED = ("clip_fraction", "grad_norm", "ratio_max", "map_entropy")

Number = Annotated[float, Strict(), AllowInfNan(False)]
Scores = Annotated[list[Number], Field(min_length=1)]  # of the held-out images


@dataclass(frozen=True)
class _Look:
    """One look at the held-out images; the first and the last have watch figures."""

    epoch: int
    images: int
    graded: Scores
    exact: Scores
    watch: dict[str, Number] = field(default_factory=dict)


@dataclass(frozen=True)
class _File:
    """What `star study-run` writes."""

    task: str
    method: str
    seed: int
    learning_rate: Number
    curve: Annotated[list[_Look], Field(min_length=1)]
    log: dict[str, list[Number | None]]  # one entry per epoch
    seconds: Number


@dataclass(frozen=True)
class Curve:
    """What one run says: held-out scores at the looks, watch figures, means of its log."""

    images: np.ndarray  # (looks,)
    epochs: tuple[int, ...]
    graded: np.ndarray  # (looks,): mean over held-out images
    exact: np.ndarray  # (looks,)
    held_out: int
    reward: float  # mean over the images of the training
    watch: tuple[dict[str, float], dict[str, float]]  # base, last look
    log: dict[str, float | None]  # mean over epochs; None if it was never logged
    seconds: float


def watched(params: Params, task: str) -> tuple[str, ...]:
    """Return the names of the watch figures of a task's runs."""
    reader = ("second_reader",) if task == "ocr" else ()
    exact = params.rewards.geneval.detector == "exact"
    miniature = exact and params.model.resolution == MINIATURE_SIDE
    return (*reader, *WATCHED, *(("unnamed",) if miniature else ()))


def load_curves(params: Params, folder: Path) -> dict[StudyRun, Curve]:
    """Read every run of ``params.study``.

    Raises:
        StarError: a missing or malformed file, by name and key, or one of other epochs, images or
            held-out prompts.
    """
    paths = {run: folder / f"{run.name}.json" for run in params.study.runs()}
    missing = [path for path in paths.values() if not path.is_file()]
    if missing:
        raise StarError(
            f"{missing[0]}: missing, as are {len(missing) - 1} more of {len(paths)} runs of the "
            f"study; `snakemake --cores all -- {missing[0]}` trains it, `make study` all"
        )
    curves: dict[StudyRun, Curve] = {}
    first: dict[str, StudyRun] = {}
    for run, path in paths.items():
        file = checked(_File, read_object(path), str(path), AGAIN)
        _check(file, run, params, str(path))
        curves[run] = _curve(file, watched(params, run.task))
        other = first.setdefault(run.task, run)
        count, wanted = curves[run].held_out, curves[other].held_out
        if count != wanted:
            raise StarError(
                f"{path}: curve: {count} held-out images, but {wanted} in {paths[other]}; "
                "train one of the two again, because runs are compared on the same images"
            )
    return curves


def _check(file: _File, run: StudyRun, params: Params, where: str) -> None:
    """Refuse a file of another run or of other looks, or one that lacks a figure."""
    looks, last, study = file.curve, len(file.curve) - 1, params.study
    images, keys = params.images_per_epoch, watched(params, run.task)
    epochs = [*range(0, study.epochs, study.evaluate_every), study.epochs]
    for key, found, wanted in (
        ("task", file.task, run.task),
        ("method", file.method, run.method),
        ("seed", file.seed, run.seed),
        ("learning_rate", file.learning_rate, run.rate),
        ("curve: epoch", [look.epoch for look in looks], epochs),
        ("curve: images", [look.images for look in looks], [images * epoch for epoch in epochs]),
    ):
        if found != wanted:
            raise StarError(f"{where}: {key} is {found!r}, not {wanted!r}; {AGAIN}")
    if len({len(scores) for look in looks for scores in (look.graded, look.exact)}) > 1:
        raise StarError(f"{where}: curve: looks at different numbers of images; {AGAIN}")
    for holder, values, needed in (
        ("curve[0].watch", looks[0].watch, keys),
        (f"curve[{last}].watch", looks[last].watch, keys),
        ("log", file.log, ("reward_mean", *LOGGED)),
    ):
        if lacking := [key for key in needed if key not in values]:
            raise StarError(f"{where}: {holder}.{lacking[0]}: missing; {AGAIN}")


def _curve(file: _File, keys: Sequence[str]) -> Curve:
    looks = file.curve
    first, last = ({key: look.watch[key] for key in keys} for look in (looks[0], looks[-1]))
    return Curve(
        images=np.array([look.images for look in looks], np.float64),
        epochs=tuple(look.epoch for look in looks),
        graded=np.array([np.mean(look.graded) for look in looks]),
        exact=np.array([np.mean(look.exact) for look in looks]),
        held_out=len(looks[0].graded),
        reward=float(np.array(file.log["reward_mean"], np.float64).mean()),
        watch=(first, last),
        log={key: mean_of_known(file.log[key]) for key in LOGGED},
        seconds=file.seconds,
    )


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are there, None where there is none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
