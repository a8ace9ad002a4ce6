"""One run of the study: a method trained from one seed, and what held-out prompts say as it learns.

All runs of a task see as many images and updates; runs of one seed also the same prompts, noise and
first adapter. Held-out prompts and their noise are the same for all (they depend on `params.seed`,
not on the run's). A run takes one core, so that several can run side by side, and leaves one JSON
file.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from star.config.params import TASKS, Params, StudyRun
from star.evaluation.drawing import ImageDrawer
from star.evaluation.judging import DIVERSITY_PROMPTS, Judge
from star.evaluation.scoring import Sample
from star.miniature.templates import count_things
from star.miniature.world import SIZE
from star.prompts.records import PromptRecord
from star.system.files import write_text_atomic
from star.training.held_out import HeldOut
from star.training.loop import open_training, run_epochs
from star.training.resume import training_identity

# Keys of a scored image's detail: the graded score that is trained, and whether it is fully right.
GRADED = {"geneval": "soft", "ocr": "score"}
EXACT = {"geneval": "strict", "ocr": "exact"}
LOGGED = ("reward_mean", "clip_fraction", "grad_norm", "ratio_max", "map_entropy")


def study_identity(params: Params, run: StudyRun, prompts: Path, held_out: Path) -> dict[str, Any]:
    """Return all that decides a run's result, as nested JSON values."""
    study, looks = params.study, dataclasses.asdict(params.evaluate)
    looks["prompts"] = hashlib.sha256(held_out.read_bytes()).hexdigest()
    looks["every"], looks["reader"] = study.evaluate_every, study.second_reader
    looks["rewards"] = dataclasses.asdict(params.rewards)  # the preference model judges, too
    changes = {
        "epochs": study.epochs,
        "seed": run.seed,
        "learning_rate": run.rate,
        "looks": looks,
    }
    return training_identity(
        params.with_changes(study.methods[run.method]),
        run.task,
        run.method,
        prompts,
        judges=TASKS,
        study=changes,
    )


def run_study(
    params: Params,
    run: StudyRun,
    records: Sequence[PromptRecord],
    held_out: Sequence[PromptRecord],
    work: Path,
    output: Path,
    identity: dict | None = None,
) -> None:
    """Train, resuming from ``work``; write the run's curve, watch figures and log to ``output``.

    Args:
        output: the JSON file.
        identity: what decides the result; see `study_identity`.

    Raises:
        StarError: what `open_training` refuses, a reward that fails, or a loss that is not finite.
    """
    study, task = params.study, run.task
    changed = _params_of(params, run)
    title = f"{task} {run.method} seed {run.seed} rate {run.rate:g}"
    curve = work / "curve.jsonl"
    opening = open_training(
        changed,
        task,
        changed.allocation,
        records,
        command="star study-run",
        title=title,
        work=work,
        output=output.parent,
        locked=[work],
        identity=identity or {},
        more_prompts=[record.prompt for record in held_out],
        judges=["preference"],
    )
    with opening as training:
        trainer, policy = training.trainer, training.trainer.policy
        looks = params.evaluate
        drawer = ImageDrawer(policy, looks.steps, looks.batch, params.seed)
        planned = drawer.plan(held_out, looks.images_per_prompt[task])
        tested = HeldOut(trainer, drawer, planned)

        def look() -> None:
            samples = tested.samples()
            point: dict[str, Any] = {
                "epoch": trainer.epoch,
                "images": trainer.epoch * changed.images_per_epoch,
                "graded": _column(samples, GRADED[task]),
                "exact": _column(samples, EXACT[task]),
            }
            if trainer.epoch in (0, study.epochs):
                judge = Judge(changed.rewards, study.second_reader, looks.batch)
                with trainer.averaged():
                    point["watch"] = watch_figures(drawer, judge, task, samples)
            _append(curve, point)

        run_epochs(trainer, training.states, title, study.evaluate_every, look)
        log = _read_lines(work / "log.jsonl")
        result = {
            "task": task,
            "method": run.method,
            "seed": run.seed,
            "learning_rate": run.rate,
            "precision": policy.model.precision,
            "kernel": policy.attention_kernel,
            "curve": _read_lines(curve),
            "log": {key: [line[key] for line in log] for key in LOGGED},
            "seconds": sum(sum(line["seconds"].values()) for line in log),
        }
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(output, json.dumps(result, sort_keys=True) + "\n")
        training.states.finish()


def watch_figures(
    drawer: ImageDrawer, judge: Judge, task: str, samples: Sequence[Sample]
) -> dict[str, float]:
    """Return what a policy that games its reward would change, means over held-out images.

    The figures of `star.evaluation.judging`, and for OCR ``second_reader``: the OCR reward by
    `study.second_reader`. Of the miniature's images ``unnamed``: the number of things, of any
    shape, less that of the prompt's objects.
    """
    each = judge.figures(samples)
    means = {name: float(np.mean([figures[name] for figures in each])) for name in each[0]}
    if task == "ocr" and (readings := judge.readings(samples)) is not None:
        means["second_reader"] = float(np.mean([reading.reward for reading in readings]))
    if judge.rewards.geneval.detector == "exact" and samples[0].image.shape[0] == SIZE:
        means["unnamed"] = float(np.mean([_unnamed(sample) for sample in samples]))
    first = [sample for sample in samples if sample.planned.index == 0][:DIVERSITY_PROMPTS]
    images = np.stack([sample.image for sample in first])
    others = drawer.draw(drawer.plan_others([sample.record for sample in first]))
    diversities = judge.diversities(images, others, first[0].record.id)
    return means | {"diversity": float(diversities["diversity"].mean())}


def _unnamed(sample: Sample) -> int:
    """Return how many things an image of the miniature shows beyond those that its prompt names."""
    clauses = sample.record.metadata.get("include", ())
    return count_things(sample.image, not clauses) - sum(clause["count"] for clause in clauses)


def _params_of(params: Params, run: StudyRun) -> Params:
    """Return the parameters of a run: its seed and rate, the study's length, one OCR worker."""
    study = params.study
    method = params.with_changes(study.methods[run.method])
    train = dataclasses.replace(
        method.train,
        learning_rate=run.rate,
        epochs=study.epochs,
        save_every=study.evaluate_every,
    )
    ocr = dataclasses.replace(params.rewards.ocr, workers=1)
    rewards = dataclasses.replace(params.rewards, ocr=ocr)
    return dataclasses.replace(method, seed=run.seed, train=train, rewards=rewards)


def _column(samples: Sequence[Sample], key: str) -> list[float]:
    return [round(float(sample.detail[key]), 4) for sample in samples]


def _append(path: Path, point: dict) -> None:
    """Add a point of the curve; points of epochs that a resumed run repeats are replaced."""
    earlier = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [line for line in earlier if json.loads(line)["epoch"] < point["epoch"]]
    write_text_atomic(path, "".join(line + "\n" for line in [*kept, json.dumps(point)]))


def _read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
