"""The runs that are compared, as frozen dataclasses: evaluations, what their trainings left beside
them, labels."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from star.config.params import TASKS
from star.report.figures import SMOOTHING, running_mean
from star.report.run import Checkpoint, ImageScore, load_checkpoint, load_log, read_object
from star.system.errors import StarError


@dataclass(frozen=True)
class ComparedRun:
    """One evaluated checkpoint and its training.

    folder: of the evaluation, absolute; log: one dict an epoch, empty where there is none;
    parameters: what decided the training, None where that was not recorded."""

    folder: Path
    checkpoint: Checkpoint  # its name is the run's label
    log: tuple[dict, ...]
    parameters: dict | None

    @property
    def label(self) -> str:
        return self.checkpoint.name

    @property
    def final_reward(self) -> float | None:
        """Mean training reward of the last `SMOOTHING` epochs; None without a log."""
        return (
            running_mean([row["reward_mean"] for row in self.log], SMOOTHING)[-1]
            if self.log
            else None
        )


def load_runs(folders: Sequence[Path]) -> tuple[ComparedRun, ...]:
    """Read evaluations, and beside each ``../../train/<same name>/``; images in the order of the
    first run.

    Args:
        folders: of `star evaluate`, as a pipeline leaves them: ``results/evaluate/<checkpoint>``.

    Raises:
        StarError: fewer than two, one folder twice, a folder of something else, a missing or
            malformed file, or evaluations of other prompts, images or seeds.
    """
    if len(folders) < 2:
        raise StarError(
            f"{folders[0]}: only one run; give two or more folders results/evaluate/<checkpoint>"
        )
    _refuse_repeated(folders)
    absolute = [Path(os.path.abspath(folder)) for folder in folders]
    runs = [
        _load_run(folder, label) for folder, label in zip(absolute, labels(absolute), strict=True)
    ]
    first = runs[0].checkpoint
    return (runs[0], *(_aligned(run, first) for run in runs[1:]))


def labels(folders: Sequence[Path]) -> list[str]:
    """For each of different absolute folders the shortest end of its path that no other one has."""
    found = []
    for folder in folders:
        others = [other.parts for other in folders if other != folder]
        length = next(
            n
            for n in range(1, len(folder.parts) + 1)
            if all(o[-n:] != folder.parts[-n:] for o in others)
        )
        found.append(str(Path(*folder.parts[-length:])))
    return found


def _refuse_repeated(folders: Sequence[Path]) -> None:
    seen: dict[str, Path] = {}
    for folder in folders:
        real = os.path.realpath(folder)
        if real in seen:
            same = "" if seen[real] == folder else f", as {seen[real]} too"
            raise StarError(f"{folder}: given twice{same}; give different runs")
        seen[real] = folder


def _load_run(folder: Path, label: str) -> ComparedRun:
    scores = folder / "scores.json"
    if not scores.is_file():
        raise StarError(
            f"{folder}: not an evaluation, it has no scores.json; give results/evaluate/<checkpoint>"
        )
    values = read_object(scores)
    task, method = values.get("task"), values.get("method")
    named = task in TASKS and isinstance(method, str)
    if "checkpoint" not in values or not (named or task is method is None):
        raise StarError(
            f"{scores}: not the scores of a checkpoint; give a folder that `star evaluate` wrote"
        )
    checkpoint = dataclasses.replace(load_checkpoint(folder, task, method), name=label)
    _check_benchmarks(checkpoint, scores)
    training = folder.parent.parent / "train" / folder.name
    recorded = training / "parameters.json"
    return ComparedRun(
        folder,
        checkpoint,
        load_log(training),
        read_object(recorded) if recorded.is_file() else None,
    )


def _check_benchmarks(checkpoint: Checkpoint, scores: Path) -> None:
    drawn = {image.task for image in checkpoint.images}
    if drawn != checkpoint.benchmarks.keys() or not drawn <= set(TASKS):
        raise StarError(
            f"{scores}: scores of {', '.join(sorted(checkpoint.benchmarks)) or 'nothing'}, but images.jsonl has "
            f"images of {', '.join(sorted(drawn))}; evaluate this checkpoint again"
        )


# What two images must share to be a pair: task, prompt's id, index among the prompt's, seed,
# prompt.
_Identity = tuple[str, str, int, int, str]


def _aligned(run: ComparedRun, first: Checkpoint) -> ComparedRun:
    """The run with its images in the order of the first one's, so that equal positions are
    pairs."""
    ours, theirs = _by_identity(run.checkpoint), _by_identity(first)
    if ours.keys() != theirs.keys():
        raise StarError(
            f"{run.label}/images.jsonl: {len(ours.keys() - theirs.keys())} of {len(ours)} images are not in "
            f"{first.name}/images.jsonl, and {len(theirs.keys() - ours.keys())} of its {len(theirs)} are not here; "
            f"{_first_difference(list(ours), list(theirs))}; differences need the same images, so evaluate both "
            "with the same test prompts, seed and evaluate.images_per_prompt"
        )
    images = tuple(ours[key] for key in theirs)
    return dataclasses.replace(run, checkpoint=dataclasses.replace(run.checkpoint, images=images))


def _by_identity(checkpoint: Checkpoint) -> dict[_Identity, ImageScore]:
    found: dict[_Identity, ImageScore] = {}
    for image in checkpoint.images:
        key = image.task, image.id, image.index, image.seed, image.prompt
        if key in found:
            raise StarError(
                f"{checkpoint.name}/images.jsonl: image {image.index} of {image.id} ({image.task}) appears twice; "
                "evaluate this checkpoint again"
            )
        found[key] = image
    return found


def _first_difference(ours: list[_Identity], theirs: list[_Identity]) -> str:
    """What sets the first image apart that only one of the two has."""
    (task, name, index, seed, prompt), inside = next(
        (key, mine)
        for keys, others, mine in ((ours, set(theirs), True), (theirs, set(ours), False))
        for key in keys
        if key not in others
    )
    image = f"image {index} of {name} ({task})"
    there = next((key for key in theirs if key[:3] == (task, name, index)), None)
    if not inside or there is None:
        return f"{image} is missing {'there' if inside else 'here'}"
    if prompt != there[4]:
        return f"{image} has the prompt {prompt!r} here and {there[4]!r} there"
    return f"{image} has seed {seed} here and {there[3]} there"
