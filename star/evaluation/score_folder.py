"""`star score`: a folder of images, drawn by any model, scored as `star evaluate` scores a
checkpoint's.

The images are named as those of an evaluation are, ``<record id>_<index>.png``, so that a folder
``images/`` that `star evaluate` wrote can be scored again, by other parameters of the rewards.
Diversity is not measured: it needs images from other noise."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from star.config.params import Params, fingerprint
from star.evaluation.scoring import (
    Numbered,
    image_lines,
    image_name,
    score_batches,
    write_scores,
)
from star.method.precision import set_tf32
from star.preflight import check_writable
from star.prompts.records import PromptRecord
from star.rewards.factory import build_reward, find_models
from star.rewards.preference import PreferenceReward
from star.system.errors import StarError
from star.system.images import read_image
from star.system.progress import Progress


def score_folder(
    params: Params, task: str, records: Sequence[PromptRecord], folder: Path, output: Path
) -> None:
    """Score ``evaluate.images_per_prompt`` images of each prompt and write scores.json,
    images.jsonl, metrics.json.

    Args:
        records: of the benchmark; other images of the folder are left alone.
        folder: of ``<record id>_<index>.png``, squares of ``model.resolution`` pixels.

    Raises:
        StarError: a folder that cannot be written, a missing judge, an image that is missing,
            damaged, or of another size or kind (all of these before an image is scored), or a
            reward that fails.
    """
    check_writable(output, "the output folder")
    find_models([task], params.rewards)
    if strangers := [record.id for record in records if record.task != task]:
        raise StarError(
            f"record {strangers[0]}: not a prompt of {task}; give {task}'s test prompts"
        )
    count = params.evaluate.images_per_prompt[task]
    plan = [(record, index, None) for record in records for index in range(count)]
    _check(folder, plan, params.model.resolution)
    set_tf32(params.model.tf32)
    judge = PreferenceReward(params.rewards.preference)
    reward = build_reward(task, params.rewards)
    seconds = {"scoring": 0.0}
    try:
        samples = score_batches(
            _batches(folder, plan, params), reward, params.rewards.timeout, seconds
        )
    finally:
        reward.close()
    lines = image_lines(samples, task, params, judge, seconds)
    facts = {
        "images": str(folder),
        "params_fingerprint": fingerprint(params.rewards, params.evaluate, params.seed),
        "seconds": seconds,
    }
    write_scores(output, facts, {task: lines}, params)


def _check(folder: Path, plan: Sequence[tuple[PromptRecord, int, None]], side: int) -> None:
    """Read every image once, so that a bad one costs no scoring."""
    missing = [
        name
        for name in (image_name(r, index) for r, index, _ in plan)
        if not (folder / name).is_file()
    ]
    if missing:
        raise StarError(
            f"{folder}: {len(missing)} of {len(plan)} images are missing, the first is {missing[0]}; images are "
            "named <record id>_<index>.png, and evaluate.images_per_prompt says how many a prompt has"
        )
    for record, index, _ in Progress(plan, desc="check images", unit="image", leave=False):
        read_image(folder / image_name(record, index), side)


def _batches(
    folder: Path, plan: Sequence[tuple[PromptRecord, int, None]], params: Params
) -> Iterator[tuple[Sequence[Numbered], np.ndarray]]:
    """The batches of `star evaluate`: a judge's last digits depend on an image's neighbours."""
    numbered, size = list(enumerate(plan)), params.evaluate.batch
    for start in Progress(range(0, len(plan), size), desc="score", unit="batch", leave=False):
        batch = numbered[start : start + size]
        images = [
            read_image(folder / image_name(r, i), params.model.resolution) for _, (r, i, _) in batch
        ]
        yield batch, np.stack(images)
