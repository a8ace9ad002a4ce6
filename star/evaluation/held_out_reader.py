"""A second reader of OCR images, held out from every training: is a gain in the OCR reward seen
by another reader?

A policy that learned what pleases the reward's PP-OCRv4, and not to write, would gain there and not
here. Training imports nothing of this module.

``ppocrv6``: PP-OCRv6's small networks, by `rapidocr`, whose wheel carries them. It reads images
of any size. It comes from the makers of PP-OCRv4 and may share its blind spots. ``template``: the
miniature's letters matched in their slots (`star.miniature.reader`), 64-pixel images alone. It
shares nothing with either."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from star.prompts.records import PromptRecord
from star.rewards.base import RewardError
from star.rewards.ocr import target_text, text_reward
from star.rewards.reading import TIMEOUT, ReadingPool, TextReader
from star.system.errors import StarError

if TYPE_CHECKING:
    from rapidocr import RapidOCR

READ_SIDE = (
    64  # pixels to which smaller images are enlarged; more reads no better (benchmarks/ocr.py)
)
_LIMIT = 960  # pixels, longer side of what detection sees; the reward's reader has the same
_TEXT_HEIGHT = 48  # pixels, the recogniser's input height


@dataclass(frozen=True)
class SecondReading:
    """What the second reader reads in an image, and `text_reward` of it in [0, 1], in which extra
    letters cost."""

    text: str
    reward: float


def read_again(
    reader: str,
    images: Sequence[np.ndarray],
    records: Sequence[PromptRecord],
    workers: int,
    timeout: float = TIMEOUT,
    batch: int = 64,
) -> list[SecondReading]:
    """Read OCR images with the second reader; an image's reading does not depend on the others.

    Args:
        reader: ``ppocrv6`` or ``template``.
        images: n images uint8 (height, width, 3), RGB.
        records: n records, image i belongs to record i.
        workers: processes that read, for ppocrv6; 0 reads in this one.
        timeout: seconds that they may take for a batch.
        batch: images.

    Raises:
        RewardError: a record without text, an image that cannot be read, or a batch that is not
            read in time; names the record's id.
    """
    ids, targets = [record.id for record in records], [target_text(record) for record in records]
    if not ids:
        return []  # of several processes one may have no image
    if reader == "template":
        reads = _template_reads(images, ids)
    elif reader == "ppocrv6":
        reads = _ppocrv6_reads(images, ids, workers, timeout, batch)
    else:
        raise ValueError(f"no second reader {reader!r}")
    return [
        SecondReading(read, text_reward(read, target, False))
        for read, target in zip(reads, targets, strict=True)
    ]


def _template_reads(images: Sequence[np.ndarray], ids: list[str]) -> list[str]:
    from star.miniature.reader import read_letters  # only the miniature needs its letters

    try:
        return read_letters(np.stack(images))
    except StarError as error:
        raise RewardError(f"{ids[0]}: {error}") from error


def _ppocrv6_reads(
    images: Sequence[np.ndarray], ids: list[str], workers: int, timeout: float, batch: int
) -> list[str]:
    pool = ReadingPool(PPOCRV6, workers, timeout)
    parts = [slice(start, start + batch) for start in range(0, len(ids), batch)]
    try:
        return [read for part in parts for read in pool.read(images[part], ids[part])]
    finally:
        pool.close()


def _lines(image: np.ndarray) -> list[str]:
    found: Any = ppocrv6()(image[..., ::-1])  # PP-OCR wants BGR
    return list(found.txts or ())


@cache
def ppocrv6() -> "RapidOCR":
    """This process's reader, set up as the reward's is: one thread, no orientation classifier,
    texts one by one."""
    import cv2
    import rapidocr

    cv2.setNumThreads(1)
    models = Path(rapidocr.__file__).parent / "models"
    return rapidocr.RapidOCR(
        params={
            "Global.log_level": "critical",  # it warns of every image without text
            "Global.use_cls": False,
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            "Det.model_path": str(
                models / "PP-OCRv6_det_small.onnx"
            ),  # models that are not named may be fetched
            "Det.limit_type": "max",
            "Det.limit_side_len": _LIMIT,
            "Rec.model_path": str(models / "PP-OCRv6_rec_small.onnx"),
            "Rec.rec_img_shape": [3, _TEXT_HEIGHT, _TEXT_HEIGHT],  # the last is the least width
            "Rec.rec_batch_num": 1,
        }
    )


PPOCRV6 = TextReader(ppocrv6, _lines, READ_SIDE)
