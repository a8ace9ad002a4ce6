"""The runs that are compared: evaluations, what their trainings left next to them, labels."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from star.config.params import TASKS
from star.report.figures import SMOOTHING, TrainingLog, running_mean
from star.report.files import read_object
from star.report.run import EVALUATE_AGAIN, Checkpoint, aligned, load_checkpoint, load_log
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
        """Return the mean training reward of the last `SMOOTHING` epochs; None without a log."""
        rewards = [row["reward_mean"] for row in self.log if row["epoch"] > 0]
        return running_mean(rewards, SMOOTHING)[-1] if rewards else None

    @property
    def training_log(self) -> TrainingLog:
        return TrainingLog(str(self.checkpoint.task), self.label, self.color, self.log)


def load_runs(folders: Sequence[Path]) -> tuple[ComparedRun, ...]:
    """Read evaluations and, for each, ``../../train/<same name>/``.

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
    pairs = (replace(run, checkpoint=aligned(run.checkpoint, first)) for run in runs[1:])
    return (runs[0], *pairs)


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
            f"{scores}: benchmarks: scores of {scored or 'nothing'}, but images.jsonl has images "
            f"of {shown}; {EVALUATE_AGAIN}"
        )
    training = folder.parent.parent / "train" / folder.name
    recorded = training / "parameters.json"
    parameters = read_object(recorded) if recorded.is_file() else None
    return ComparedRun(folder, checkpoint, color, load_log(training), parameters)
