"""The files of a run as frozen dataclasses: scores, images, training logs and allocation maps.

Required: ``evaluate/<checkpoint>/scores.json`` and ``images.jsonl`` of base and of every run that
the parameters name. Optional: training logs, maps, images; what is missing is an empty tuple or
None, and the page says so."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationInfo

from star.evaluation.statistics import Interval
from star.report.files import checked, read_object, read_objects
from star.system.errors import StarError

BASE = "base"
EVALUATE_AGAIN, TRAIN_AGAIN = "evaluate this checkpoint again", "train this run again"


def _existing(name: object, info: ValidationInfo) -> Path | None:
    """Return the named file of the folder that is read; None if it is not there or lies outside."""
    folder = info.context
    if not isinstance(name, str) or folder is None:
        return None
    try:
        path = folder / name
        inside = path.is_file() and path.resolve().is_relative_to(folder.resolve())
    except OSError as error:
        raise ValueError(f"no name of a file ({error.strerror})") from error
    return path if inside else None


ImageFile = Annotated[Path | None, BeforeValidator(_existing)]


@dataclass(frozen=True)
class ImageScore:
    """One evaluated image: a line of ``images.jsonl``."""

    id: str
    task: str
    index: int
    seed: int
    prompt: str
    score: float
    detail: dict[str, Any]
    image: ImageFile = None


@dataclass(frozen=True)
class Checkpoint:
    """The evaluation of base (no task, no method) or of one trained adapter."""

    name: str
    task: str | None
    method: str | None
    benchmarks: dict[str, dict[str, Any]]
    seconds: dict[str, float]
    params_fingerprint: str
    images: tuple[ImageScore, ...]
    quality: dict[str, dict[str, Interval]]  # task -> figure of `star.evaluation.image_metrics`


@dataclass(frozen=True)
class MapRow:
    """Saved allocation maps of one sample: images of the maps at some steps, and of the sample."""

    epoch: int
    prompt: str
    reward: float
    steps: tuple[int, ...]
    final: ImageFile
    maps: tuple[ImageFile, ...]
    advantage: float | None = None

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.maps):
            raise ValueError(f"{len(self.steps)} steps but {len(self.maps)} maps")


@dataclass(frozen=True)
class Training:
    """One training: its log, one dict an epoch, and its saved maps; either may be empty."""

    task: str
    method: str
    log: tuple[dict, ...]
    maps: tuple[MapRow, ...]

    @property
    def name(self) -> str:
        return f"{self.task}-{self.method}"


@dataclass(frozen=True)
class Run:
    """All of a report's files; `trained` and `trainings` are in the order of `params.runs`."""

    base: Checkpoint
    trained: tuple[Checkpoint, ...]
    trainings: tuple[Training, ...]

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        return (self.base, *self.trained)


def load_run(runs: Mapping[str, Sequence[str]], results: Path) -> Run:
    """Read what ``runs``, task -> methods, name below ``results``.

    Raises:
        StarError: a missing or malformed file (a missing ``scores.json`` comes with the command
            that makes it), or what `aligned` refuses against base.
    """
    evaluations, names = results / "evaluate", [(t, m) for t, ms in runs.items() for m in ms]
    base = load_checkpoint(evaluations / BASE, None, None)
    others = [load_checkpoint(evaluations / f"{t}-{m}", t, m) for t, m in names]
    trained = tuple(aligned(checkpoint, base) for checkpoint in others)
    trainings = tuple(_load_training(results / "train" / f"{t}-{m}", t, m) for t, m in names)
    return Run(base, trained, trainings)


def load_checkpoint(folder: Path, task: str | None, method: str | None) -> Checkpoint:
    """Read ``scores.json`` and ``images.jsonl``; `quality` is empty in files from before it.

    Raises:
        StarError: a missing or malformed file.
    """
    scores, images = folder / "scores.json", folder / "images.jsonl"
    for path in (scores, images):
        if not path.is_file():
            raise StarError(
                f"{path}: missing; `snakemake --cores all -- {scores}` evaluates this checkpoint"
            )
    lines = tuple(
        checked(ImageScore, line, where, EVALUATE_AGAIN, folder)
        for line, where in read_objects(images)
    )
    named = {"name": folder.name, "task": task, "method": method, "images": lines}
    values = {"quality": {}} | read_object(scores) | named
    return checked(Checkpoint, values, str(scores), EVALUATE_AGAIN)


def load_log(folder: Path) -> tuple[dict, ...]:
    """Read a training's ``log.jsonl``, one line per epoch; empty if it is not there.

    A line of epoch 0 has the held-out score before training, and no reward.

    Raises:
        StarError: a malformed line, or one without epoch, images and mean reward.
    """
    path = folder / "log.jsonl"
    lines = tuple(read_objects(path)) if path.is_file() else ()
    for line, where in lines:
        for key in ("epoch", "images", "held_out" if line.get("epoch") == 0 else "reward_mean"):
            value = line.get(key)
            if not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
                raise StarError(f"{where}: {key}: missing or not a finite number; {TRAIN_AGAIN}")
    return tuple(line for line, _ in lines)


def aligned(checkpoint: Checkpoint, first: Checkpoint) -> Checkpoint:
    """Return the checkpoint with its images in the order of ``first``'s: equal positions are pairs.

    Raises:
        StarError: the two have not the same prompts, seeds and numbers of images.
    """
    ours, theirs = _by_identity(checkpoint), _by_identity(first)
    if ours.keys() != theirs.keys():
        only = [[k for k in a if k not in b] for a, b in ((ours, theirs), (theirs, ours))]
        here, there = (f"{len(keys)} ({keys[0]})" if keys else "none" for keys in only)
        raise StarError(
            f"{checkpoint.name}/images.jsonl: other images than in {first.name}/images.jsonl; only "
            f"here: {here}, only there: {there}; evaluate both with the same test prompts, seed "
            "and evaluate.images_per_prompt, because differences are paired"
        )
    return replace(checkpoint, images=tuple(ours[key] for key in theirs))


def _by_identity(checkpoint: Checkpoint) -> dict[str, ImageScore]:
    """Return the images by what two must share to be a pair."""
    found: dict[str, ImageScore] = {}
    for image in checkpoint.images:
        place = f"image {image.index} of {image.id} ({image.task})"
        key = f"{place}, seed {image.seed}, prompt {image.prompt!r}"
        if key in found:
            raise StarError(f"{checkpoint.name}/images.jsonl: {key}: twice; {EVALUATE_AGAIN}")
        found[key] = image
    return found


def _load_training(folder: Path, task: str, method: str) -> Training:
    path, maps = folder / "maps" / "maps.json", tuple[MapRow, ...]()
    if path.is_file():
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StarError(f"{path}: not valid JSON ({error}); {TRAIN_AGAIN}") from error
        maps = checked(tuple[MapRow, ...], rows, str(path), TRAIN_AGAIN, path.parent)
    return Training(task, method, load_log(folder), maps)
