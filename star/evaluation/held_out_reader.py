"""A second reader of OCR images, held out from every training.

A policy that learned what pleases the reward's PP-OCRv4, and not to write, gains there and not
here. Training imports nothing of this module.

``ppocrv6`` is PP-OCRv6's small networks, by `rapidocr`, whose wheel carries them. It reads any size
and may share blind spots with PP-OCRv4, which has the same makers. ``template`` matches letters in
their slots (`star.miniature.reader`), only in the miniature's images; it shares nothing."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from star.prompts.records import PromptRecord
from star.rewards.base import RewardError
from star.rewards.ocr import (
    TEXT_HEIGHT,
    recogniser,
    report_unreadable,
    target_texts,
    text_reward,
)
from star.rewards.reading import ReadingPool, TextReader
from star.system.errors import StarError

if TYPE_CHECKING:
    from rapidocr import RapidOCR

RECOGNISER = "PP-OCRv6_rec_small.onnx"
READ_SIDE = 64  # pixels to which smaller images are enlarged; more reads no better
DETECTION_SIDE = 960  # pixels, longer side of what detection sees, as of the reward's reader


@dataclass(frozen=True)
class SecondReading:
    """What the second reader reads in an image, and its `text_reward`, where extra letters cost."""

    text: str
    reward: float


def read_again(
    reader: str,
    images: Sequence[np.ndarray],
    records: Sequence[PromptRecord],
    workers: int,
    timeout: float = 600.0,
    batch: int = 64,
) -> list[SecondReading]:
    """Read OCR images with the second reader; a reading does not depend on the other images.

    Args:
        reader: ``ppocrv6`` or ``template``.
        images: n images uint8 (height, width, 3), RGB, of n records.
        workers: processes that read, for ppocrv6; 0 reads in this one.
        timeout: seconds that they may take for ``batch`` images.

    Raises:
        RewardError: a record without text, or what `ReadingPool.read` raises."""
    ids, targets = [record.id for record in records], [target_texts(record) for record in records]
    if not ids:
        return []  # of several processes one may have no image
    if reader == "template":
        reads = _template_reads(images, ids)
    elif reader == "ppocrv6":
        parts = [slice(start, start + batch) for start in range(0, len(ids), batch)]
        with closing(ReadingPool(PPOCRV6, workers, timeout)) as pool:
            reads = [read for part in parts for read in pool.read(images[part], ids[part])]
    else:
        raise ValueError(f"no second reader {reader!r}")
    return [
        SecondReading(read, text_reward(read, target, substring=False))
        for read, target in zip(reads, targets, strict=True)
    ]


def report_texts(records: Sequence[PromptRecord], reader: str, say: Callable[[str], None]) -> None:
    """Say which characters of OCR prompts the reward's and the second reader cannot read."""
    report_unreadable(records, recogniser(), say)
    if reader == "ppocrv6":
        report_unreadable(records, _models() / RECOGNISER, say)


def _template_reads(images: Sequence[np.ndarray], ids: list[str]) -> list[str]:
    from star.miniature.reader import read_letters  # only the miniature needs its letters

    try:
        return read_letters(np.stack(images))
    except StarError as error:
        raise RewardError(f"{ids[0]}: {error}") from error


def _lines(image: np.ndarray) -> list[str]:
    found: Any = ppocrv6()(image[..., ::-1])  # PP-OCR wants BGR
    return list(found.txts or ())


@cache
def ppocrv6() -> "RapidOCR":
    """Open this process's reader, set up as the reward's: one thread, texts one by one."""
    import cv2
    import rapidocr

    cv2.setNumThreads(1)
    return rapidocr.RapidOCR(
        params={
            "Global.log_level": "critical",  # it warns of every image without text
            "Global.use_cls": False,
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            "Det.model_path": str(_models() / "PP-OCRv6_det_small.onnx"),
            "Det.limit_type": "max",
            "Det.limit_side_len": DETECTION_SIDE,
            "Rec.model_path": str(_models() / RECOGNISER),
            "Rec.rec_img_shape": [3, TEXT_HEIGHT, TEXT_HEIGHT],  # the last is the least width
            "Rec.rec_batch_num": 1,
        }
    )


def _models() -> Path:
    import rapidocr

    return Path(rapidocr.__file__).parent / "models"  # models that are not named may be fetched


PPOCRV6 = TextReader(ppocrv6, _lines, READ_SIDE)
