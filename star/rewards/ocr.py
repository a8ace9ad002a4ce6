"""OCR reward: does the image show the word that the prompt quotes?

PP-OCRv4 (`rapidocr-onnxruntime`, whose wheel carries the models) reads on the CPU, in the worker
processes of `star.rewards.reading`; the trainer goes on meanwhile.

Both networks are bound by arithmetic: their cost is linear in pixels, and batches or mosaics of
images gain nothing. So small images are enlarged no more than reading mostly needs
(`read_side`; only where that shows no text, to twice that), and the recogniser's input is as wide
as the text instead of at least 320 pixels."""

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from rapidfuzz.distance import Levenshtein

from star.config.params import OcrParams
from star.prompts.records import PromptRecord
from star.rewards.base import RewardError, RewardResult, check_batch
from star.rewards.reading import TIMEOUT, ReadingPool, TextReader

if TYPE_CHECKING:
    from rapidocr_onnxruntime import RapidOCR

_TEXT_HEIGHT = 48  # pixels, the recogniser's input height


def normalized(text: str) -> str:
    """Text as it is compared: without white space, lower case."""
    return "".join(text.split()).lower()


def text_reward(read: str, target: str, substring: bool) -> float:
    """Reward ``1 - min(d, len) / len`` in [0, 1]: d the Levenshtein distance of normalised texts,
    len the target's.

    Flow-GRPO (arXiv:2505.05470), OCR task. Its rule is ``substring=True``: d is 0 wherever the read
    text contains the target, so "LOVEE" pays in full for "LOVE". With ``substring=False`` each
    extra character costs one edit.

    Raises:
        ValueError: the target is empty.
    """
    read, target = normalized(read), normalized(target)
    if not target:
        raise ValueError("the target text is empty")
    if substring and target in read:
        return 1.0
    return 1.0 - min(Levenshtein.distance(read, target), len(target)) / len(target)


def letter_shares(read: str, target: str, substring: bool) -> np.ndarray:
    """What each letter of the target contributes to `text_reward`: float32 (letters,), with it as
    sum.

    A letter counts ``1 / len``; one that is missing or read as another, nothing; and an extra
    character costs the letter at whose place it stands as much as a letter counts. Where that
    leaves nothing of the reward, all are 0.

    Letters are the target's characters but for blanks, as in
    `star.prompts.core_tokens.clause_records`."""
    letters = [normalized(letter) for letter in target if not letter.isspace()]
    owner = [index for index, letter in enumerate(letters) for _ in letter]
    reward, length = text_reward(read, target, substring), len(owner)
    shares = np.bincount(owner, minlength=len(letters)).astype(np.float32)
    if reward == 0:
        return np.zeros_like(shares)
    if reward < 1:
        for edit in Levenshtein.editops(normalized(read), normalized(target)):
            shares[owner[min(edit.dest_pos, length - 1)]] -= 1
    return shares / length


class OcrReward:
    """`text_reward` of the word in ``record.metadata["text"]``: scores in [0, 1].

    Details of an image: ``target``, ``read`` (its text lines from top to bottom, joined by
    blanks), ``exact`` (equal once normalised) and ``score``. An image's result does not depend on
    the images it is batched with."""

    name = "ocr"

    def __init__(self, params: OcrParams, timeout: float = TIMEOUT) -> None:
        """Start ``params.workers`` processes, which load their readers in the background; 0 reads
        in a thread here.

        A batch may take ``timeout`` seconds.
        """
        self._params = params
        self._collector = ThreadPoolExecutor(1, thread_name_prefix="ocr")
        self._pool = ReadingPool(ppocrv4(params.read_side), params.workers, timeout)

    def submit(self, images: np.ndarray, records: Sequence[PromptRecord]) -> "Future[RewardResult]":
        """Start scoring and return at once; ``images`` must stay unchanged until the future is
        done.

        Args:
            images: uint8 (n, height, width, 3), RGB.
            records: n records, image i belongs to record i.

        Raises:
            RewardError: a record without text (here), an image that cannot be read or a worker
                that died (from ``result()``); the message names the record's id.
        """
        check_batch(self.name, images, records)
        targets = [target_text(record) for record in records]
        return self._collector.submit(
            self._score, images, [record.id for record in records], targets
        )

    def close(self) -> None:
        """Stop the workers; futures that have not begun are cancelled. Idempotent."""
        self._pool.close()
        self._collector.shutdown(cancel_futures=True)

    def _score(self, images: np.ndarray, ids: list[str], targets: list[str]) -> RewardResult:
        details, shares = [], []
        for read, target in zip(self._pool.read(images, ids), targets, strict=True):
            shares.append(letter_shares(read, target, self._params.substring))
            score = text_reward(read, target, self._params.substring)
            exact = normalized(read) == normalized(target)
            details.append({"target": target, "read": read, "exact": exact, "score": score})
        return RewardResult(
            np.array([detail["score"] for detail in details], np.float32), details, shares
        )


def target_text(record: PromptRecord) -> str:
    """The word that the record's prompt quotes.

    Raises:
        RewardError: it has none; names the record's id.
    """
    text = record.metadata.get("text")
    if not isinstance(text, str) or not normalized(text):
        raise RewardError(
            f'{record.id}: no text to read for: the ocr reward needs metadata {{"text": WORD}}; prepare OCR prompts'
        )
    return text


def ppocrv4(side: int) -> TextReader:
    """The reward's reader; ``side`` is `rewards.ocr.read_side`."""
    return TextReader(reader, _lines, side)


def _lines(image: np.ndarray) -> list[str]:
    found, _ = reader()(image[..., ::-1], use_cls=False)  # PP-OCR wants BGR
    return [text for _, text, _ in found or ()]


@cache
def reader() -> "RapidOCR":
    """This process's reader: detection at the image's own size (at most 960 pixels), no
    orientation classifier."""
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
        rec_img_shape=[
            3,
            _TEXT_HEIGHT,
            _TEXT_HEIGHT,
        ],  # the last is the least width; the text's own if larger
        rec_batch_num=1,  # a batch is padded to its widest text, which changes what is read in the others
    )
