"""OCR reward: does the image show the word that the prompt quotes?

PP-OCRv4 (`rapidocr-onnxruntime`, whose wheel carries the models) reads on the CPU, in the worker
processes of `star.rewards.reading`; the trainer goes on meanwhile. Its cost is linear in pixels. So
images are enlarged only to ``read_side``, and the recogniser's input is as wide as the text."""

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from rapidfuzz.distance import Levenshtein

from star.config.params import OcrParams
from star.prompts.records import PromptRecord
from star.rewards.base import Reward, RewardError, RewardResult, check_batch
from star.rewards.reading import ReadingPool, TextReader

if TYPE_CHECKING:
    from rapidocr_onnxruntime import RapidOCR

TEXT_HEIGHT = 48  # pixels, the recogniser's input height


def normalized(text: str) -> str:
    """Return text as it is compared: without white space, lower case."""
    return "".join(text.split()).lower()


def text_reward(read: str, target: str, substring: bool) -> float:
    """Return ``1 - min(d, len) / len`` in [0, 1], d the Levenshtein distance of normalised texts.

    Flow-GRPO's OCR task (arXiv 2505.05470) is ``substring=True``: d is 0 wherever the read text
    contains the target, so "LOVEE" pays in full for "LOVE". Else each extra character is an edit.

    Raises:
        ValueError: the target is empty."""
    read, target = normalized(read), normalized(target)
    if not target:
        raise ValueError("the target text is empty")
    if substring and target in read:
        return 1.0
    return 1.0 - min(Levenshtein.distance(read, target), len(target)) / len(target)


def letter_shares(read: str, target: str, substring: bool) -> np.ndarray:
    """Return each letter's part of `text_reward`: float32 (letters,), with it as sum.

    Letters are the target's characters except spaces, as in `core_tokens.clause_records`.
    A letter counts ``1 / len``; a missing or misread one nothing. An extra character costs as much,
    at the letter where it stands. Where the reward is 0, all parts are."""
    letters = [normalized(letter) for letter in target if not letter.isspace()]
    owner = [index for index, letter in enumerate(letters) for _ in letter]  # lower case may be two
    reward, length = text_reward(read, target, substring), len(owner)
    shares = np.bincount(owner, minlength=len(letters)).astype(np.float32)
    if reward == 0:
        return np.zeros_like(shares)
    if reward < 1:
        for edit in Levenshtein.editops(normalized(read), normalized(target)):
            shares[owner[min(edit.dest_pos, length - 1)]] -= 1
    return shares / length


class OcrReward(Reward):
    """`text_reward` of the word in ``record.metadata["text"]``: scores in [0, 1].

    Details are ``target``, ``read`` (the text lines from top to bottom, joined by spaces),
    ``exact`` (equal once normalised) and ``score``. They do not depend on the other images."""

    name = "ocr"

    def __init__(self, params: OcrParams, timeout: float) -> None:
        """Start ``params.workers`` processes; with 0 (not from params.yaml) a thread reads."""
        self._substring = params.substring
        self._collector = ThreadPoolExecutor(1, thread_name_prefix="ocr")
        self._pool = ReadingPool(ppocrv4(params.read_side), params.workers, timeout)

    def submit(self, images: np.ndarray, records: Sequence[PromptRecord]) -> "Future[RewardResult]":
        """Start scoring and return immediately.

        Raises:
            RewardError: a record without text; from ``result()`` what `ReadingPool.read` raises."""
        check_batch(self.name, images, records)
        targets = [target_text(record) for record in records]
        ids = [record.id for record in records]
        return self._collector.submit(self._score, images, ids, targets)

    def close(self) -> None:
        self._pool.close()
        self._collector.shutdown(cancel_futures=True)

    def _score(self, images: np.ndarray, ids: list[str], targets: list[str]) -> RewardResult:
        details, shares = [], []
        for read, target in zip(self._pool.read(images, ids), targets, strict=True):
            score = text_reward(read, target, self._substring)
            exact = normalized(read) == normalized(target)
            details.append({"target": target, "read": read, "exact": exact, "score": score})
            shares.append(letter_shares(read, target, self._substring))
        scores = np.array([detail["score"] for detail in details], np.float32)
        return RewardResult(scores, details, shares)


def target_text(record: PromptRecord) -> str:
    """Return the word that the record's prompt quotes; `RewardError` if it has none."""
    text = record.metadata.get("text")
    if not isinstance(text, str) or not normalized(text):
        raise RewardError(
            f"{record.id}: no text to read for: the ocr reward needs metadata "
            '{"text": WORD}; prepare OCR prompts'
        )
    return text


def ppocrv4(side: int) -> TextReader:
    """Return the reward's reader; ``side`` is `rewards.ocr.read_side`."""
    return TextReader(reader, _lines, side)


def _lines(image: np.ndarray) -> list[str]:
    found, _ = reader()(image[..., ::-1], use_cls=False)  # PP-OCR wants BGR
    return [text for _, text, _ in found or ()]


@cache
def reader() -> "RapidOCR":
    """Open this process's PP-OCRv4; detection sees the image's own size, at most 960 pixels."""
    import cv2

    for name in ("RapidOCR", "OrtInferSession"):
        logging.getLogger(name).disabled = True
    from rapidocr_onnxruntime import RapidOCR

    cv2.setNumThreads(1)
    return RapidOCR(
        intra_op_num_threads=1,
        inter_op_num_threads=1,
        use_cls=False,
        det_limit_type="max",
        rec_img_shape=[3, TEXT_HEIGHT, TEXT_HEIGHT],  # the last is the least width
        rec_batch_num=1,  # a batch is padded to its widest text, which changes what is read
    )
