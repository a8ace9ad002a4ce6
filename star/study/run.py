"""One run of the study: a method of `study.methods` trained from one seed, and what held-out
prompts say as it learns.

All runs of a task see the same number of images and updates; runs of one seed also the same
prompts, noise and first adapter. Held-out prompts and their noise are the same for all runs (they
depend on `params.seed`, not on the run's). A run takes one core, so that several can run side by
side, and leaves one small JSON file."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from star.config.params import Params
from star.evaluation.evaluate import Sample, draw_and_score
from star.evaluation.held_out_reader import read_again
from star.evaluation.image_metrics import image_statistics, pixel_diversity
from star.method.seeds import seed_of
from star.policy.rollout import sample_images
from star.policy.sd3 import load_policy
from star.preflight import check_core, check_folders, find_all_models
from star.prompts.records import PromptRecord
from star.rewards.factory import build_reward
from star.rewards.guarded import GuardedReward
from star.rewards.preference import PreferenceReward
from star.system.files import write_text_atomic
from star.system.locks import take_lock
from star.system.signals import listening
from star.training.batches import check_other_prompts
from star.training.checkpoint import States, remove_done
from star.training.loop import records_ahead, run_epochs
from star.training.trainer import Trainer

# Keys of a scored image's detail: the graded score that is trained, and whether it is fully
# right.
GRADED = {"geneval": "soft", "ocr": "score"}
EXACT = {"geneval": "strict", "ocr": "exact"}
LOGGED = ("reward_mean", "clip_fraction", "grad_norm", "ratio_max", "map_entropy")
DIVERSITY_PROMPTS = 64


def run_study(
    params: Params,
    task: str,
    method: str,
    seed: int,
    learning_rate: float,
    records: Sequence[PromptRecord],
    held_out: Sequence[PromptRecord],
    work: Path,
    output: Path,
    identity: dict | None = None,
) -> None:
    """Train, resuming from ``work``, and write the run's curve, watch figures and log to ``output``
    (JSON).

    Args:
        identity: what decides the result; see `star.training.checkpoint.States`.

    Raises:
        StarError: an unusable model, a reward that fails, or a non-finite loss.
    """
    study = params.study
    settings = dataclasses.replace(
        params.train,
        learning_rate=learning_rate,
        epochs=study.epochs,
        save_every=study.evaluate_every,
    )
    ocr = dataclasses.replace(params.rewards.ocr, workers=1)
    rewards = dataclasses.replace(params.rewards, ocr=ocr)
    trained = dataclasses.replace(params, seed=seed, train=settings, rewards=rewards)
    allocation = dataclasses.replace(params.allocation, **study.methods[method])
    check_folders(params.model, work, output.parent)
    check_other_prompts(records, trained, allocation)
    folder = find_all_models(params.model, rewards, {task, "preference"})
    check_core(folder, params.model, params.core, allocation, records_ahead(records, trained))
    reward = build_reward(task, rewards)
    curve = work / "curve.jsonl"
    try:
        policy = load_policy(
            params.model, torch.device("cuda" if torch.cuda.is_available() else "cpu")
        )
        trainer = Trainer(trained, allocation, records, reward, policy)

        def look() -> None:
            with trainer.averaged():
                count, seconds = (
                    params.evaluate.images_per_prompt[task],
                    {"sampling": 0.0, "scoring": 0.0},
                )
                samples = draw_and_score(policy, params, held_out, reward, count, seconds)
                point: dict = {
                    "epoch": trainer.epoch,
                    "images": trainer.epoch * trained.images_per_epoch,
                }
                point |= {
                    "graded": _column(samples, GRADED[task]),
                    "exact": _column(samples, EXACT[task]),
                }
                if trainer.epoch in (0, study.epochs):
                    point["watch"] = watch(trainer, params, task, samples)
            _append(curve, point)

        title = f"{task} {method} seed {seed} rate {learning_rate:g}"
        lock = take_lock(work / ".lock", f"star study-run {title}")
        remove_done(work)
        states = States(work, settings.keep_states, identity or {})
        with listening() as trainer.interrupted:
            run_epochs(trainer, states, title, study.evaluate_every, look)
        os.close(lock)
    finally:
        reward.close()
    log = [
        json.loads(line) for line in (work / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    run = {
        "task": task,
        "method": method,
        "seed": seed,
        "learning_rate": learning_rate,
        "precision": policy.model.precision,
        "kernel": policy.attention_kernel,
        "curve": [json.loads(line) for line in curve.read_text(encoding="utf-8").splitlines()],
        "log": {key: [line[key] for line in log] for key in LOGGED},
        "seconds": sum(sum(line["seconds"].values()) for line in log),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(output, json.dumps(run, sort_keys=True) + "\n")
    states.finish()


def watch(
    trainer: Trainer, params: Params, task: str, samples: Sequence[Sample]
) -> dict[str, float]:
    """What a policy that games its reward would change, means over held-out images.

    Those of `star.evaluation.image_metrics`, and for OCR ``second_reader``: the OCR reward by
    `study.second_reader`."""
    records, images = (
        [sample.record for sample in samples],
        np.stack([sample.image for sample in samples]),
    )
    judge = GuardedReward(PreferenceReward(params.rewards.preference), params.rewards.timeout)
    judged = judge.submit(images, records).result()
    figures = {"preference": float(np.mean([detail["score"] for detail in judged.details]))}
    if task == "ocr":
        options = (1, params.rewards.timeout, params.evaluate.batch)
        readings = read_again(params.study.second_reader, list(images), records, *options)
        figures["second_reader"] = float(np.mean([reading.reward for reading in readings]))
    some = records[:DIVERSITY_PROMPTS]
    seeds = [seed_of(params.seed, "diversity", record.id) for record in some]
    others = sample_images(
        trainer.policy, [record.prompt for record in some], seeds, params.evaluate.steps
    )
    measured = image_statistics(images) | {
        "diversity": pixel_diversity(images[: len(some)], others)
    }
    return figures | {name: float(values.mean()) for name, values in measured.items()}


def _column(samples: Sequence[Sample], key: str) -> list[float]:
    return [round(float(sample.detail[key]), 4) for sample in samples]


def _append(path: Path, point: dict) -> None:
    """Add a point of the curve; points of epochs that a resumed run repeats are replaced."""
    earlier = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [line for line in earlier if json.loads(line)["epoch"] < point["epoch"]]
    write_text_atomic(path, "".join(line + "\n" for line in [*kept, json.dumps(point)]))
