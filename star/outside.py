"""`star score`: a folder of pictures, drawn by any model, scored as `star evaluate` scores a checkpoint's.

The pictures are named as those of an evaluation are, ``<record id>_<index>.png``, so that a folder ``pictures/`` that
`star evaluate` wrote can be scored again, by other parameters of the rewards. Diversity is not measured: it needs
pictures from other noise.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from star.checks import check_writable
from star.errors import StarError
from star.params import Params, fingerprint
from star.pictures import read_picture
from star.precision import set_tf32
from star.progress import Progress
from star.records import PromptRecord
from star.rewards.factory import build_reward, find_models
from star.rewards.preference import PreferenceReward
from star.scoring import Numbered, picture_lines, picture_name, score_batches, write_scores


def score_folder(params: Params, task: str, records: Sequence[PromptRecord], folder: Path, output: Path) -> None:
    """Score ``evaluate.images_per_prompt`` pictures of each prompt and write scores.json, images.jsonl, metrics.json.

    Args:
        records: of the benchmark; other pictures of the folder are left alone.
        folder: of ``<record id>_<index>.png``, squares of ``model.resolution`` pixels.

    Raises:
        StarError: a folder that cannot be written, a missing judge, a picture that is missing, damaged, or of another
            size or kind (all of these before a picture is scored), or a reward that fails.
    """
    check_writable(output, "the output folder")
    find_models([task], params.rewards)
    if strangers := [record.id for record in records if record.task != task]:
        raise StarError(f"record {strangers[0]}: not a prompt of {task}; give {task}'s test prompts")
    count = params.evaluate.images_per_prompt[task]
    plan = [(record, index, None) for record in records for index in range(count)]
    _check(folder, plan, params.model.resolution)
    set_tf32(params.model.tf32)
    judge = PreferenceReward(params.rewards.preference)
    reward = build_reward(task, params.rewards)
    seconds = {"scoring": 0.0}
    try:
        samples = score_batches(_batches(folder, plan, params), reward, params.rewards.timeout, seconds)
    finally:
        reward.close()
    lines = picture_lines(samples, task, params, judge, seconds)
    facts = {
        "pictures": str(folder),
        "params_fingerprint": fingerprint(params.rewards, params.evaluate, params.seed),
        "seconds": seconds,
    }
    write_scores(output, facts, {task: lines}, params)


def _check(folder: Path, plan: Sequence[tuple[PromptRecord, int, None]], side: int) -> None:
    """Read every picture once, so that a bad one costs no scoring."""
    missing = [name for name in (picture_name(r, index) for r, index, _ in plan) if not (folder / name).is_file()]
    if missing:
        raise StarError(
            f"{folder}: {len(missing)} of {len(plan)} pictures are missing, the first is {missing[0]}; pictures are "
            "named <record id>_<index>.png, and evaluate.images_per_prompt says how many a prompt has"
        )
    for record, index, _ in Progress(plan, desc="check pictures", unit="picture", leave=False):
        read_picture(folder / picture_name(record, index), side)


def _batches(
    folder: Path, plan: Sequence[tuple[PromptRecord, int, None]], params: Params
) -> Iterator[tuple[Sequence[Numbered], np.ndarray]]:
    """The batches of `star evaluate`: a judge's last digits depend on a picture's neighbours."""
    numbered, size = list(enumerate(plan)), params.evaluate.batch
    for start in Progress(range(0, len(plan), size), desc="score", unit="batch", leave=False):
        batch = numbered[start : start + size]
        pictures = [read_picture(folder / picture_name(r, i), params.model.resolution) for _, (r, i, _) in batch]
        yield batch, np.stack(pictures)
