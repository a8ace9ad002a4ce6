"""The files of the study's runs as frozen dataclasses, each checked against the run that its name
promises."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from star.config.params import Params, StudyRun
from star.prompts.records import parse_object
from star.system.errors import StarError

WATCHED = ("preference", "edges", "dark", "diversity")  # and `second_reader` for OCR
LOGGED = ("clip_fraction", "grad_norm", "ratio_max", "map_entropy")


@dataclass(frozen=True)
class Curve:
    """What one run wrote: held-out scores at the looks, watch figures before and after, means of
    its log."""

    images: np.ndarray  # (looks,)
    epochs: tuple[int, ...]
    graded: np.ndarray  # (looks,): mean over held-out images
    exact: np.ndarray  # (looks,)
    held_out: int
    watch: tuple[dict[str, float], dict[str, float]]  # base, last look
    log: dict[str, float | None]  # mean over epochs; None if it was never logged
    seconds: float


def watched(task: str) -> tuple[str, ...]:
    """Names of a task's watch figures."""
    return (WATCHED[0], "second_reader", *WATCHED[1:]) if task == "ocr" else WATCHED


def look_epochs(params: Params) -> list[int]:
    """Epochs at which a run looks at held-out prompts: the start, every `evaluate_every`, the
    end."""
    study = params.study
    return [*range(0, study.epochs, study.evaluate_every), study.epochs]


def load_curves(params: Params, folder: Path) -> dict[StudyRun, Curve]:
    """Read every run that `params.study` names.

    Raises:
        StarError: a missing or malformed file, by name and key, or one of other epochs, images or
    held-out prompts."""
    runs = params.study.runs()
    missing = [
        folder / f"{run.name}.json" for run in runs if not (folder / f"{run.name}.json").is_file()
    ]
    if missing:
        raise StarError(
            f"{missing[0]}: missing, as are {len(missing) - 1} more of {len(runs)} runs of the study; "
            f"`snakemake --cores all -- {missing[0]}` trains it, `make study` all"
        )
    curves: dict[StudyRun, Curve] = {}
    images: dict[str, tuple[int, Path]] = {}
    for run in runs:
        path = folder / f"{run.name}.json"
        curves[run] = _curve(params, run, path)
        count, first = images.setdefault(run.task, (curves[run].held_out, path))
        if curves[run].held_out != count:
            raise StarError(
                f"{path}: curve: {curves[run].held_out} held-out images, but {count} in {first}; runs are compared "
                "on the same ones, so train one of the two again"
            )
    return curves


def _curve(params: Params, run: StudyRun, path: Path) -> Curve:
    try:
        file = parse_object(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise StarError(f"{path}: {error}") from error
    try:
        return _checked(params, run, file)
    except _Wrong as error:
        raise StarError(f"{path}: {error}; delete it and train this run again") from error


def _checked(params: Params, run: StudyRun, file: dict) -> Curve:
    for key, expected in (
        ("task", run.task),
        ("method", run.method),
        ("seed", run.seed),
        ("learning_rate", run.rate),
    ):
        if _item(file, key) != expected:
            raise _Wrong(f"{key} is {file[key]!r}, not {expected!r}")
    points = _item(file, "curve")
    epochs = look_epochs(params)
    if (
        not isinstance(points, list)
        or [_item(p, "epoch", f"curve[{k}]") for k, p in enumerate(points)] != epochs
    ):
        raise _Wrong(
            f"curve: not the epochs {', '.join(map(str, epochs))} that the parameters ask for"
        )
    graded, exact = (
        np.array(list(_scores(points, key))) for key in ("graded", "exact")
    )  # (looks,)
    for k, (point, epoch) in enumerate(zip(points, epochs, strict=True)):
        if _item(point, "images", f"curve[{k}]") != epoch * params.images_per_epoch:
            raise _Wrong(
                f"curve[{k}].images is {point['images']!r}, not {epoch} epochs x {params.images_per_epoch} images"
            )
    lengths = {len(point[key]) for point in points for key in ("graded", "exact")}
    if len(lengths) != 1:
        raise _Wrong("curve: looks at different numbers of images")
    first, last = (_watch(run.task, points[k], f"curve[{k % len(points)}].watch") for k in (0, -1))
    log = _item(file, "log")
    return Curve(
        images=np.array([point["images"] for point in points], np.float64),
        epochs=tuple(epochs),
        graded=graded,
        exact=exact,
        held_out=lengths.pop(),
        watch=(first, last),
        log={key: _mean(_item(log, key, "log"), f"log.{key}") for key in LOGGED},
        seconds=_number(_item(file, "seconds"), "seconds"),
    )


class _Wrong(ValueError):
    """What is wrong with a file, without the file's name."""


def _item(holder: Any, key: str, where: str = "") -> Any:
    name = f"{where}.{key}".lstrip(".")
    if not isinstance(holder, dict) or key not in holder:
        raise _Wrong(f"{name} is missing")
    return holder[key]


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _Wrong(f"{where} is {value!r}, not a finite number")
    return float(value)


def _scores(points: list[dict], key: str) -> Iterator[float]:
    """The mean score of each look."""
    for k, point in enumerate(points):
        values, where = _item(point, key, f"curve[{k}]"), f"curve[{k}].{key}"
        if not isinstance(values, list) or not values:
            raise _Wrong(f"{where} is not a list of scores")
        yield float(np.mean([_number(value, f"{where}[{n}]") for n, value in enumerate(values)]))


def _watch(task: str, point: dict, where: str) -> dict[str, float]:
    figures = _item(point, "watch", where.removesuffix(".watch"))
    return {key: _number(_item(figures, key, where), f"{where}.{key}") for key in watched(task)}


def _mean(values: Any, where: str) -> float | None:
    if not isinstance(values, list):
        raise _Wrong(f"{where} is not a list")
    numbers = [
        _number(value, f"{where}[{k}]") for k, value in enumerate(values) if value is not None
    ]
    return float(np.mean(numbers)) if numbers else None
