"""`star score`: scores a folder of images, drawn by any model, as `star evaluate` scores its own.

The images are named as those of an evaluation, ``<record id>_<index>.png``: the folder ``images/``
that `star evaluate` wrote can be scored again with other reward parameters. Diversity is not
measured, since it needs images from other noise.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from star.config.params import Params, fingerprint
from star.evaluation.held_out_reader import report_texts
from star.evaluation.judging import Judge
from star.evaluation.scoring import PlannedImage, in_batches, score_batches
from star.evaluation.summary import image_lines, write_scores
from star.method.precision import set_tf32
from star.prompts.records import PromptRecord
from star.rewards.factory import build_reward, find_models
from star.system.errors import StarError
from star.system.files import check_writable
from star.system.images import read_image
from star.system.processes import device_name
from star.system.progress import Progress
from star.system.stopwatch import Stopwatch


def score_folder(
    params: Params, task: str, records: Sequence[PromptRecord], folder: Path, output: Path
) -> None:
    """Score ``evaluate.images_per_prompt`` images per prompt; write what `star evaluate` writes.

    Args:
        records: of the benchmark; other images of the folder are left alone.
        folder: of ``<record id>_<index>.png``, squares of ``model.resolution`` pixels.

    Raises:
        StarError: a folder that cannot be written, a missing judge, an image that is missing,
            damaged, or of another size or kind (all before an image is scored); a reward that
            fails.
    """
    check_writable(output, "the output folder")
    # The device that the judges open on.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{task}: judged on {device_name(device)}", flush=True)
    find_models([task], params.rewards)
    if strangers := [record.id for record in records if record.task != task]:
        raise StarError(
            f"record {strangers[0]}: not a prompt of {task}; give {task}'s test prompts"
        )
    settings, side = params.evaluate, params.model.resolution
    each = [(r, i) for r in records for i in range(settings.images_per_prompt[task])]
    planned = [PlannedImage(number, r, i, None) for number, (r, i) in enumerate(each)]
    _check(folder, planned, side)
    if task == "ocr":
        report_texts(records, settings.second_reader, print)
    set_tf32(params.model.tf32)
    judge = Judge(params.rewards, settings.second_reader, settings.batch)
    reward = build_reward(task, params.rewards)
    watch = Stopwatch("scoring")
    try:
        batches = _read(folder, in_batches(planned, settings.batch), side)
        samples = score_batches(batches, reward, params.rewards.timeout, watch)
    finally:
        reward.close()
    lines = image_lines(samples, task, judge, watch)
    facts = {
        "images": str(folder),
        "params_fingerprint": fingerprint(params.rewards, params.evaluate, params.seed),
        "seconds": watch.seconds,
    }
    write_scores(output, facts, {task: lines}, settings.bootstrap, params.seed)


def _check(folder: Path, planned: Sequence[PlannedImage], side: int) -> None:
    """Read every image once, so that a bad one costs no scoring."""
    missing = [image.file for image in planned if not (folder / image.file).is_file()]
    if missing:
        raise StarError(
            f"{folder}: {len(missing)} of {len(planned)} images are missing, the first is "
            f"{missing[0]}; images are named <record id>_<index>.png, and "
            "evaluate.images_per_prompt says how many a prompt has"
        )
    for image in Progress(planned, desc="check images", unit="image", leave=False):
        read_image(folder / image.file, side)


def _read(
    folder: Path, batches: Sequence[Sequence[PlannedImage]], side: int
) -> Iterator[tuple[Sequence[PlannedImage], np.ndarray]]:
    for batch in Progress(batches, desc="score", unit="batch", leave=False):
        yield batch, np.stack([read_image(folder / image.file, side) for image in batch])
