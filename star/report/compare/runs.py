"""The runs that are compared: evaluations, what their trainings left beside them, labels."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from star.config.params import TASKS
from star.report.figures import SMOOTHING, TrainingLog, running_mean
from star.report.files import read_object
from star.report.run import EVALUATE_AGAIN, Checkpoint, ImageScore, load_checkpoint, load_log
from star.system.errors import StarError

RUN_FOLDER = "results/evaluate/<checkpoint>"


@dataclass(frozen=True)
class ComparedRun:
    """One evaluated checkpoint, whose name is the run's label, and its training."""

    folder: Path  # of the evaluation, absolute
    checkpoint: Checkpoint
    color: int
    log: tuple[dict, ...]  # one dict an epoch, empty where there is none
    parameters: dict | None  # what decided the training, None where that was not recorded

    @property
    def label(self) -> str:
        return self.checkpoint.name

    @property
    def final_reward(self) -> float | None:
        """Mean training reward of the last `SMOOTHING` epochs; None without a log."""
        rewards = [row["reward_mean"] for row in self.log]
        return running_mean(rewards, SMOOTHING)[-1] if rewards else None

    @property
    def training_log(self) -> TrainingLog:
        return TrainingLog(str(self.checkpoint.task), self.label, self.color, self.log)


def load_runs(folders: Sequence[Path]) -> tuple[ComparedRun, ...]:
    """Read evaluations and, beside each, ``../../train/<same name>/``.

    Images come in the order of the first run, so that equal positions are pairs.

    Args:
        folders: of `star evaluate`, as a pipeline leaves them: ``results/evaluate/<checkpoint>``.

    Raises:
        StarError: fewer than two, one folder twice, a folder of something else, a missing or
            malformed file, or evaluations of other prompts, images or seeds.
    """
    if len(folders) < 2:
        raise StarError(f"{folders[0]}: only one run; give two or more folders {RUN_FOLDER}")
    _refuse_repeated(folders)
    absolute = [Path(os.path.abspath(folder)) for folder in folders]
    named = zip(absolute, labels(absolute), strict=True)
    runs = [_load_run(folder, label, color) for color, (folder, label) in enumerate(named)]
    first = runs[0].checkpoint
    return (runs[0], *(_aligned(run, first) for run in runs[1:]))


def labels(folders: Sequence[Path]) -> list[str]:
    """Return for each absolute folder the shortest end of its path that no other one has."""
    found = []
    for folder in folders:
        others, length = [other.parts for other in folders if other != folder], 1
        while any(other[-length:] == folder.parts[-length:] for other in others):
            length += 1
        found.append(str(Path(*folder.parts[-length:])))
    return found


def _refuse_repeated(folders: Sequence[Path]) -> None:
    seen: dict[str, Path] = {}
    for folder in folders:
        earlier = seen.setdefault(os.path.realpath(folder), folder)
        if earlier is not folder:
            same = "" if earlier == folder else f", as {earlier} too"
            raise StarError(f"{folder}: given twice{same}; give different runs")


def _load_run(folder: Path, label: str, color: int) -> ComparedRun:
    scores = folder / "scores.json"
    if not scores.is_file():
        raise StarError(f"{folder}: not an evaluation, it has no scores.json; give {RUN_FOLDER}")
    values = read_object(scores)
    task, method = values.get("task"), values.get("method")
    named = task in TASKS and isinstance(method, str)
    if "checkpoint" not in values or not (named or task is method is None):
        raise StarError(f"{scores}: not the scores of a checkpoint; give {RUN_FOLDER}")
    checkpoint = replace(load_checkpoint(folder, task, method), name=label)
    evaluated = {image.task for image in checkpoint.images}
    if evaluated != checkpoint.benchmarks.keys() or not evaluated <= set(TASKS):
        scored, shown = (", ".join(sorted(names)) for names in (checkpoint.benchmarks, evaluated))
        raise StarError(
            f"{scores}: benchmarks: scores of {scored or 'nothing'}, but images.jsonl has images of "
            f"{shown}; {EVALUATE_AGAIN}"
        )
    training = folder.parent.parent / "train" / folder.name
    recorded = training / "parameters.json"
    parameters = read_object(recorded) if recorded.is_file() else None
    return ComparedRun(folder, checkpoint, color, load_log(training), parameters)


@dataclass(frozen=True)
class _Identity:
    """What two images must share to be a pair."""

    task: str
    id: str
    index: int  # among the prompt's images
    seed: int
    prompt: str

    def __str__(self) -> str:
        return f"image {self.index} of {self.id} ({self.task})"


def _aligned(run: ComparedRun, first: Checkpoint) -> ComparedRun:
    """Return the run with its images in the order of the first one's."""
    ours, theirs = _by_identity(run.checkpoint), _by_identity(first)
    if ours.keys() != theirs.keys():
        raise StarError(
            f"{run.label}/images.jsonl: {len(ours.keys() - theirs.keys())} of {len(ours)} images "
            f"are not in {first.name}/images.jsonl, and {len(theirs.keys() - ours.keys())} of its "
            f"{len(theirs)} are not here; {_first_difference(ours, theirs)}; evaluate both with "
            "the same test prompts, seed and evaluate.images_per_prompt"
        )
    images = tuple(ours[key] for key in theirs)
    return replace(run, checkpoint=replace(run.checkpoint, images=images))


def _by_identity(checkpoint: Checkpoint) -> dict[_Identity, ImageScore]:
    found: dict[_Identity, ImageScore] = {}
    for image in checkpoint.images:
        key = _Identity(image.task, image.id, image.index, image.seed, image.prompt)
        if key in found:
            raise StarError(
                f"{checkpoint.name}/images.jsonl: {key} appears twice; {EVALUATE_AGAIN}"
            )
        found[key] = image
    return found


def _first_difference(
    ours: dict[_Identity, ImageScore], theirs: dict[_Identity, ImageScore]
) -> str:
    """Say what sets the first image apart that only one of the two has."""
    image = next((key for key in ours if key not in theirs), None)
    if image is None:
        return f"{next(key for key in theirs if key not in ours)} is missing here"
    for other in theirs:
        if (other.task, other.id, other.index) == (image.task, image.id, image.index):
            if image.prompt != other.prompt:
                return f"{image} has the prompt {image.prompt!r} here and {other.prompt!r} there"
            return f"{image} has seed {image.seed} here and {other.seed} there"
    return f"{image} is missing there"
