"""The files of a run as frozen dataclasses: scores, images, training logs and saved allocation
maps.

Required: ``evaluate/<checkpoint>/scores.json`` and ``images.jsonl`` of base and of every run that
the parameters name. Optional: training logs, maps, images; what is missing is an empty tuple or
None, and the page says so."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from star.config.params import Params
from star.evaluation.statistics import Interval
from star.prompts.records import parse_object, read_lines
from star.system.errors import StarError

BASE = "base"


@dataclass(frozen=True)
class ImageScore:
    """One evaluated image: a line of ``images.jsonl``; ``image`` is None where the file is not
    there."""

    id: str
    task: str
    index: int
    seed: int
    prompt: str
    score: float
    detail: dict
    image: Path | None


@dataclass(frozen=True)
class Checkpoint:
    """The evaluation of base (no task, no method) or of one trained adapter, by the parsed
    ``scores.json``."""

    name: str
    task: str | None
    method: str | None
    benchmarks: dict
    quality: dict[str, dict[str, Interval]]  # task -> figure of `star.evaluation.image_metrics`
    seconds: dict[str, float]
    params_fingerprint: str
    images: tuple[ImageScore, ...]


@dataclass(frozen=True)
class MapRow:
    """Saved allocation maps of one sample: images of the maps at some steps, and of the finished
    sample."""

    epoch: int
    prompt: str
    reward: float
    advantage: float | None
    steps: tuple[int, ...]
    final: Path | None
    maps: tuple[Path | None, ...]


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
    """Everything a report is made of; `trained` and `trainings` follow the order of
    `params.runs`."""

    base: Checkpoint
    trained: tuple[Checkpoint, ...]
    trainings: tuple[Training, ...]

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        return (self.base, *self.trained)


def load_run(params: Params, results: Path) -> Run:
    """Read what `params.runs` names below ``results``.

    Raises:
        StarError: a missing or malformed file (a missing ``scores.json`` comes with the command
            that makes it), or a checkpoint whose images are not the same prompts and seeds as
            base's.
    """
    runs = [(task, method) for task, methods in params.runs.items() for method in methods]
    base = load_checkpoint(results / "evaluate" / BASE, None, None)
    trained = tuple(load_checkpoint(results / "evaluate" / f"{t}-{m}", t, m) for t, m in runs)
    for checkpoint in (base, *trained):
        if not checkpoint.quality:
            raise StarError(
                f"{checkpoint.name}/scores.json: no figures at quality; evaluate this checkpoint again"
            )
    for checkpoint in trained:
        _check_pairs(checkpoint, base, results / "evaluate" / checkpoint.name / "images.jsonl")
    trainings = tuple(_load_training(results / "train" / f"{t}-{m}", t, m) for t, m in runs)
    return Run(base, trained, trainings)


def load_checkpoint(folder: Path, task: str | None, method: str | None) -> Checkpoint:
    """Read ``scores.json`` and ``images.jsonl``; without a ``quality``, as before there was one,
    that is empty.

    Raises:
        StarError: a missing or malformed file.
    """
    scores, images = folder / "scores.json", folder / "images.jsonl"
    for path in (scores, images):
        if not path.is_file():
            raise StarError(
                f"{path}: missing; `snakemake --cores all -- {scores}` evaluates this checkpoint"
            )
    values = read_object(scores)
    try:
        benchmarks = dict(values["benchmarks"])
        quality = {
            task: {
                name: Interval(*(float(v[key]) for key in ("mean", "low", "high")))
                for name, v in figures.items()
            }
            for task, figures in values.get("quality", {}).items()
        }
        seconds = {str(phase): float(value) for phase, value in values["seconds"].items()}
        fingerprint = str(values["params_fingerprint"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise StarError(
            f"{scores}: not a score file ({error!r}); evaluate this checkpoint again"
        ) from error
    lines = tuple(_image(line, folder, where) for line, where in _json_lines(images))
    return Checkpoint(folder.name, task, method, benchmarks, quality, seconds, fingerprint, lines)


def read_object(path: Path) -> dict:
    """A file that must be one JSON object; `StarError` if it cannot be read or is another thing."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StarError(f"{path}: cannot be read ({error}); make it again") from error
    return parse_object(text, str(path))


def _json_lines(path: Path) -> Iterator[tuple[dict, str]]:
    """The objects of a JSON-lines file, each with its ``file:line``."""
    for number, line in read_lines(path):
        yield parse_object(line, f"{path}:{number}"), f"{path}:{number}"


def _image(line: dict, folder: Path, where: str) -> ImageScore:
    try:
        image = _file(folder, line.get("image"))
        identity = str(line["id"]), str(line["task"]), int(line["index"]), int(line["seed"])
        return ImageScore(
            *identity, str(line["prompt"]), float(line["score"]), dict(line["detail"]), image
        )
    except (KeyError, TypeError, ValueError, OverflowError, OSError) as error:
        raise StarError(
            f"{where}: not a scored image ({error!r}); evaluate this checkpoint again"
        ) from error


def _file(folder: Path, name: object) -> Path | None:
    """A file named by a results file, if it is there and lies in the folder."""
    if not isinstance(name, str):
        return None
    path = folder / name
    return path if path.is_file() and path.resolve().is_relative_to(folder.resolve()) else None


def _check_pairs(checkpoint: Checkpoint, base: Checkpoint, where: Path) -> None:
    ours, theirs = ([(i.id, i.task, i.index, i.seed) for i in c.images] for c in (checkpoint, base))
    if ours != theirs:
        shared = min(len(ours), len(theirs))
        line = next((n for n in range(shared) if ours[n] != theirs[n]), shared) + 1
        raise StarError(
            f"{where}:{line}: not the prompt, image and seed that base has there; differences need the same images, "
            f"so evaluate base and {checkpoint.name} with the same parameters"
        )


def _load_training(folder: Path, task: str, method: str) -> Training:
    maps_file = folder / "maps" / "maps.json"
    return Training(
        task, method, load_log(folder), _load_maps(maps_file) if maps_file.is_file() else ()
    )


def load_log(folder: Path) -> tuple[dict, ...]:
    """The lines of a training's ``log.jsonl``, one an epoch; none if it is not there.

    Raises:
        StarError: a malformed line, or one without epoch, images and mean reward.
    """
    path = folder / "log.jsonl"
    return tuple(_epoch(line, where) for line, where in _json_lines(path)) if path.is_file() else ()


def _epoch(line: dict, where: str) -> dict:
    for key in ("epoch", "images", "reward_mean"):
        value = line.get(key)
        if not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            raise StarError(
                f"{where}: {key!r} is missing or not a finite number; train this run again"
            )
    return line


def _load_maps(path: Path) -> tuple[MapRow, ...]:
    try:
        return tuple(
            _map_row(row, path.parent) for row in json.loads(path.read_text(encoding="utf-8"))
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StarError(
            f"{path}: not a list of saved maps ({error!r}); train this run again"
        ) from error


def _map_row(row: dict, folder: Path) -> MapRow:
    maps = tuple(_file(folder, name) for name in row["maps"])
    steps = tuple(int(step) for step in row["steps"])
    if len(steps) != len(maps):
        raise ValueError(f"{len(steps)} steps but {len(maps)} maps")
    reward, advantage = float(row["reward"]), row.get("advantage")
    advantage = None if advantage is None else float(advantage)
    return MapRow(
        int(row["epoch"]),
        str(row["prompt"]),
        reward,
        advantage,
        steps,
        _file(folder, row["final"]),
        maps,
    )
