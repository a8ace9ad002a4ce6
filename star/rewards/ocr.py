"""OCR reward: does the picture show the word that the prompt quotes?

PP-OCRv4 (`rapidocr-onnxruntime`, whose wheel carries the models) reads on the CPU, one thread a process, in spawned
workers that never import torch; the trainer goes on meanwhile.

Both networks are bound by arithmetic: their cost is linear in pixels, and batches or mosaics of pictures gain nothing.
So small pictures are enlarged no more than reading mostly needs (`read_side`; only where that shows no text, to twice
that), and the recogniser's input is as wide as the text instead of at least 320 pixels.
"""

import logging
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from rapidfuzz.distance import Levenshtein

from star.params import OcrParams
from star.records import PromptRecord
from star.rewards.base import RewardError, RewardResult, check_batch
from star.runtime import keep_freed_memory

if TYPE_CHECKING:
    from rapidocr_onnxruntime import RapidOCR

_CHUNK = 16  # pictures a task of the pool: small enough that the workers finish together
_TEXT_HEIGHT = 48  # pixels, the recogniser's input height
_SECOND_LOOK = 2.0  # times `read_side`: detection misses some pairs of letters in pictures enlarged less


def normalized(text: str) -> str:
    """Text as it is compared: without white space, lower case."""
    return "".join(text.split()).lower()


def text_reward(read: str, target: str, substring: bool) -> float:
    """Reward ``1 - min(d, len) / len`` in [0, 1]: d the Levenshtein distance of normalised texts, len the target's.

    Flow-GRPO (arXiv:2505.05470), OCR task. Its rule is ``substring=True``: d is 0 wherever the read text contains the
    target, so "LOVEE" pays in full for "LOVE". With ``substring=False`` each extra character costs one edit.

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
    """What each letter of the target contributes to `text_reward`: float32 (letters,), with it as sum.

    A letter counts ``1 / len``; one that is missing or read as another, nothing; and an extra character costs the
    letter at whose place it stands as much as a letter counts. Where that leaves nothing of the reward, all are 0.

    Letters are the target's characters but for blanks, as in `star.core.clause_records`.
    """
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

    Details of a picture: ``target``, ``read`` (its text lines from top to bottom, joined by blanks), ``exact`` (equal
    once normalised) and ``score``. A picture's result does not depend on the pictures it is batched with.
    """

    name = "ocr"

    def __init__(self, params: OcrParams) -> None:
        """Start ``params.workers`` processes, which load their readers in the background; 0 reads in a thread here."""
        self._params = params
        self._collector = ThreadPoolExecutor(1, thread_name_prefix="ocr")
        self._pool: ProcessPoolExecutor | None = None
        if params.workers:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(params.workers, context, initializer=_start_worker)
            for _ in range(params.workers):  # what fails here fails again, and is reported, with the first picture
                self._pool.submit(_load_reader)

    def submit(self, images: np.ndarray, records: Sequence[PromptRecord]) -> "Future[RewardResult]":
        """Start scoring and return at once; ``images`` must stay unchanged until the future is done.

        Args:
            images: uint8 (n, height, width, 3), RGB.
            records: n records, picture i belongs to record i.

        Raises:
            RewardError: a record without text (here), a picture that cannot be read or a worker that died (from
                ``result()``); the message names the record's id.
        """
        check_batch(self.name, images, records)
        targets = [_target(record) for record in records]
        return self._collector.submit(self._score, images, [record.id for record in records], targets)

    def close(self) -> None:
        """Stop the workers; futures that have not begun are cancelled. Idempotent."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._collector.shutdown(cancel_futures=True)

    def _score(self, images: np.ndarray, ids: list[str], targets: list[str]) -> RewardResult:
        details, shares = [], []
        for read, target in zip(self._read(images, ids), targets, strict=True):
            shares.append(letter_shares(read, target, self._params.substring))
            score = text_reward(read, target, self._params.substring)
            exact = normalized(read) == normalized(target)
            details.append({"target": target, "read": read, "exact": exact, "score": score})
        return RewardResult(np.array([detail["score"] for detail in details], np.float32), details, shares)

    def _read(self, images: np.ndarray, ids: list[str]) -> list[str]:
        side = self._params.read_side
        if self._pool is None:
            return read_pictures(images, ids, side)
        size = max(1, min(_CHUNK, math.ceil(len(ids) / self._params.workers)))
        chunks = [slice(start, start + size) for start in range(0, len(ids), size)]
        reads: list[str] = []
        try:
            tasks = [self._pool.submit(read_pictures, images[chunk], ids[chunk], side) for chunk in chunks]
            for task in tasks:
                reads += task.result()
        except BrokenProcessPool as error:
            first = ids[len(reads)]
            raise RewardError(
                f"{first}: an OCR worker died before this picture was read (out of memory?); "
                f"lower rewards.ocr.workers and resume"
            ) from error
        return reads


def _target(record: PromptRecord) -> str:
    text = record.metadata.get("text")
    if not isinstance(text, str) or not normalized(text):
        raise RewardError(
            f'{record.id}: no text to read for: the ocr reward needs metadata {{"text": WORD}}; prepare OCR prompts'
        )
    return text


def read_pictures(images: np.ndarray, ids: list[str], side: int) -> list[str]:
    """The text of each picture, its lines from top to bottom joined by blanks, read in this process.

    Args:
        images: uint8 (n, height, width, 3), RGB.
        ids: n record ids, for error messages.
        side: pixels; a picture whose longer side is shorter is enlarged to it (and to twice that if no text is found).

    Raises:
        RewardError: the reader cannot be loaded or fails; the message names the record's id.
    """
    reads = []
    for image, record_id in zip(images, ids, strict=True):
        try:
            lines = _lines(image, side)
            if not lines and max(image.shape) < _SECOND_LOOK * side:
                lines = _lines(image, round(_SECOND_LOOK * side))
        except Exception as error:  # whatever it is, it must reach the user with the record's id, never as a zero
            reason = (str(error).strip() or "no message").splitlines()[-1]  # onnxruntime's is a whole traceback
            raise RewardError(f"{record_id}: the OCR reader failed: {type(error).__name__}: {reason}") from error
        reads.append(" ".join(lines))
    return reads


def _lines(image: np.ndarray, side: int) -> list[str]:
    found, _ = reader()(_enlarged(image, side)[..., ::-1], use_cls=False)  # PP-OCR wants BGR
    return [text for _, text, _ in found or ()]


def _enlarged(image: np.ndarray, side: int) -> np.ndarray:
    """The picture with its longer side at least ``side`` pixels: bicubic; a larger one stays as it is."""
    import cv2

    scale = side / max(image.shape[:2])
    if scale <= 1:
        return image
    height, width = (max(1, round(length * scale)) for length in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)


@cache
def reader() -> "RapidOCR":
    """This process's reader: detection at the picture's own size (at most 960 pixels), no orientation classifier."""
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
        rec_img_shape=[3, _TEXT_HEIGHT, _TEXT_HEIGHT],  # the last is the least width; the text's own if larger
        rec_batch_num=1,  # a batch is padded to its widest text, which changes what is read in the others
    )


def _load_reader() -> None:
    reader()  # not returned: it cannot be pickled


def _start_worker() -> None:
    """Runs once in each worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets Ctrl-C too, and closes the pool
    os.environ["OMP_NUM_THREADS"] = "1"
    keep_freed_memory()
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """End this process when its parent is gone: after a SIGKILL nobody else would."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
