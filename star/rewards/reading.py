"""Text in images, read on the CPU in worker processes: spawned, one thread each, without torch.

What reads is a `TextReader`; the reward's is in `star.rewards.ocr`, evaluation's in
`star.evaluation.held_out_reader`. Every image is read on its own, so what is read depends neither
on the other images nor on the number of workers."""

import logging
import math
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from star.rewards.base import RewardError
from star.system.runtime import keep_freed_memory
from star.system.signals import ignore_in_worker

_CHUNK = 16  # images per task of the pool: small enough that the workers finish together
_SECOND_LOOK = 2.0  # times `side`: detection misses some pairs of letters in images enlarged less

Images = Sequence[np.ndarray] | np.ndarray  # n images uint8 (height, width, 3), RGB


@dataclass(frozen=True)
class TextReader:
    """A reader as it is sent to a worker: functions of a module, for only those can be pickled."""

    load: Callable[[], object]  # opens the reader in this process; later calls find it open
    lines: Callable[[np.ndarray], list[str]]  # of an image, from top to bottom
    # Pixels to which a shorter longer side is enlarged, and to twice that if no text is found.
    side: int


class ReadingPool:
    """Processes that read images; they start immediately and load their readers in the background.

    A worker that dies (the kernel may kill one when memory is short) is replaced once in each
    `read`; one that hangs is killed with the others."""

    def __init__(self, reader: TextReader, workers: int, timeout: float) -> None:
        """Start ``workers`` processes, 0 for none; a `read` may take ``timeout`` seconds."""
        self._reader, self._workers, self._timeout = reader, workers, timeout
        self._pool = self._start() if workers else None

    def _start(self) -> ProcessPoolExecutor:
        spawn = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(self._workers, spawn, _start_worker, (self._reader,))
        pool.submit(int)  # starts the processes
        return pool

    def read(self, images: Images, ids: list[str]) -> list[str]:
        """Read images as `read_images` does, by all workers together.

        Raises:
            RewardError: an image that cannot be read, or workers that died twice or hang; begins
                with the record's id."""
        if self._pool is None:
            return read_images(self._reader, images, ids)
        reads: list[str] = []
        deadline = time.monotonic() + self._timeout
        try:
            try:
                self._read_rest(reads, images, ids, deadline)
            except BrokenProcessPool:
                logging.getLogger(__name__).warning(
                    "an OCR worker died; the workers are started again"
                )
                self._pool = self._start()
                self._read_rest(reads, images, ids, deadline)
        except BrokenProcessPool as error:
            raise RewardError(
                f"{ids[len(reads)]}: OCR workers died twice before this image was read "
                "(out of memory?); lower rewards.ocr.workers and resume"
            ) from error
        except TimeoutError as error:
            for process in list(self._pool._processes.values()):  # public only in Python 3.14
                process.kill()
            raise RewardError(
                f"{ids[len(reads)]}: the OCR reader hangs at this image or one of the next "
                f"{_CHUNK}: nothing read in {self._timeout:g} s; rewards.timeout allows more"
            ) from error
        return reads

    def _read_rest(self, reads: list[str], images: Images, ids: list[str], deadline: float) -> None:
        """Add to ``reads`` what is missing in it."""
        assert self._pool is not None
        size = max(1, min(_CHUNK, math.ceil(len(ids) / self._workers)))
        chunks = [slice(start, start + size) for start in range(len(reads), len(ids), size)]
        tasks = [
            self._pool.submit(read_images, self._reader, images[chunk], ids[chunk])
            for chunk in chunks
        ]
        for task in tasks:
            reads += task.result(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """Stop the workers; what has not begun is cancelled. A second call does nothing."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def read_images(reader: TextReader, images: Images, ids: list[str]) -> list[str]:
    """Return the text of each image: its lines from top to bottom, joined by spaces.

    Raises:
        RewardError: the reader cannot be loaded or fails; begins with the record's id."""
    reads = []
    for image, record_id in zip(images, ids, strict=True):
        try:
            lines = reader.lines(_enlarged(image, reader.side))
            if not lines and max(image.shape[:2]) < _SECOND_LOOK * reader.side:
                lines = reader.lines(_enlarged(image, round(_SECOND_LOOK * reader.side)))
        except Exception as error:  # of whatever kind, it must name the record and be no zero
            reason = (str(error).strip() or "no message").splitlines()[-1]  # not the traceback
            raise RewardError(
                f"{record_id}: the OCR reader failed: {type(error).__name__}: {reason}"
            ) from error
        reads.append(" ".join(lines))
    return reads


def _enlarged(image: np.ndarray, side: int) -> np.ndarray:
    """Return the image with its longer side at least ``side`` pixels, by bicubic interpolation."""
    import cv2

    scale = side / max(image.shape[:2])
    if scale <= 1:
        return image
    height, width = (max(1, round(length * scale)) for length in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)


def _start_worker(reader: TextReader) -> None:
    """Prepare a worker process; it ends with its parent, also after a SIGKILL."""
    ignore_in_worker()
    os.environ["OMP_NUM_THREADS"] = "1"
    keep_freed_memory()
    threading.Thread(target=_follow_parent, daemon=True).start()
    with suppress(Exception):  # what fails here fails again, and is reported, with the first image
        reader.load()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
