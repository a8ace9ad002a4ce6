"""Text in images, read on the CPU in worker processes: spawned, one thread each, and without
torch.

What reads is a `TextReader`; the reward's is in `star.rewards.ocr`, evaluation's in
`star.evaluation.held_out_reader`. Every image is read on its own, so what is read depends neither
on its neighbours nor on the number of workers."""

import logging
import math
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np

from star.rewards.base import RewardError
from star.system.runtime import keep_freed_memory
from star.system.signals import ignore_in_worker

_CHUNK = 16  # images a task of the pool: small enough that the workers finish together
TIMEOUT = 600.0  # seconds
_SECOND_LOOK = 2.0  # times `side`: detection misses some pairs of letters in images enlarged less


@dataclass(frozen=True)
class TextReader:
    """A reader as it is sent to a worker: two functions of a module, for only those can be pickled.

    Attributes:
        load: opens the reader in this process; later calls find it open.
        lines: the text lines of an image uint8 (height, width, 3), RGB, from top to bottom.
        side: pixels; an image whose longer side is shorter is enlarged to it (and to twice that if
    no text is found)."""

    load: Callable[[], object]
    lines: Callable[[np.ndarray], list[str]]
    side: int


class ReadingPool:
    """Processes that read images, started at once; they load their readers in the background.

    A worker that dies (the kernel may kill one when memory is short) is replaced once in each
    `read`; one that hangs is killed with the others."""

    def __init__(self, reader: TextReader, workers: int, timeout: float) -> None:
        """Start ``workers`` processes; 0 reads in the calling thread. A `read` may take ``timeout``
        seconds."""
        self._reader, self._workers, self._timeout = reader, workers, timeout
        self._pool = self._start() if workers else None

    def _start(self) -> ProcessPoolExecutor:
        pool = ProcessPoolExecutor(
            self._workers, multiprocessing.get_context("spawn"), initializer=_start_worker
        )
        for _ in range(
            self._workers
        ):  # what fails here fails again, and is reported, with the first image
            pool.submit(_load, self._reader)
        return pool

    def read(self, images: Sequence[np.ndarray] | np.ndarray, ids: list[str]) -> list[str]:
        """`read_images`, by all workers together.

        Args:
            images: n images uint8 (height, width, 3), RGB.
            ids: n record ids, for error messages.

        Raises:
            RewardError: an image that cannot be read, or workers that died twice or hang; names
        the record's id."""
        if self._pool is None:
            return read_images(self._reader, images, ids)
        deadline = time.monotonic() + self._timeout
        reads: list[str] = []
        try:
            try:
                self._read_on(images, ids, reads, deadline)
            except BrokenProcessPool:
                logging.getLogger(__name__).warning(
                    "an OCR worker died; the workers are started again"
                )
                self._pool = self._start()
                self._read_on(images, ids, reads, deadline)
        except BrokenProcessPool as error:
            raise RewardError(
                f"{ids[len(reads)]}: OCR workers died twice before this image was read (out of memory?); "
                f"lower rewards.ocr.workers and resume"
            ) from error
        except TimeoutError as error:
            self._kill()
            raise RewardError(
                f"{ids[len(reads)]}: the OCR reader hangs at this image or one of the next {_CHUNK}: nothing read in "
                f"{self._timeout:g} s; rewards.timeout allows more"
            ) from error
        return reads

    def _read_on(
        self,
        images: Sequence[np.ndarray] | np.ndarray,
        ids: list[str],
        reads: list[str],
        deadline: float,
    ) -> None:
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

    def _kill(self) -> None:
        """End workers that do not end by themselves; the pool is of no use afterwards."""
        assert self._pool is not None
        for process in list(
            self._pool._processes.values()
        ):  # the class has no public way before Python 3.14
            process.kill()

    def close(self) -> None:
        """Stop the workers; what has not begun is cancelled. Idempotent."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def read_images(
    reader: TextReader, images: Sequence[np.ndarray] | np.ndarray, ids: list[str]
) -> list[str]:
    """The text of each image, its lines from top to bottom joined by blanks, read in this
    process.

    Args:
        reader: what reads.
        images: n images uint8 (height, width, 3), RGB.
        ids: n record ids, for error messages.

    Raises:
        RewardError: the reader cannot be loaded or fails; the message names the record's id.
    """
    reads = []
    for image, record_id in zip(images, ids, strict=True):
        try:
            lines = reader.lines(_enlarged(image, reader.side))
            if not lines and max(image.shape[:2]) < _SECOND_LOOK * reader.side:
                lines = reader.lines(_enlarged(image, round(_SECOND_LOOK * reader.side)))
        except (
            Exception
        ) as error:  # whatever it is, it must reach the user with the record's id, never as a zero
            reason = (str(error).strip() or "no message").splitlines()[
                -1
            ]  # onnxruntime's is a whole traceback
            raise RewardError(
                f"{record_id}: the OCR reader failed: {type(error).__name__}: {reason}"
            ) from error
        reads.append(" ".join(lines))
    return reads


def _enlarged(image: np.ndarray, side: int) -> np.ndarray:
    """The image with its longer side at least ``side`` pixels: bicubic; a larger one stays as it
    is."""
    import cv2

    scale = side / max(image.shape[:2])
    if scale <= 1:
        return image
    height, width = (max(1, round(length * scale)) for length in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)


def _load(reader: TextReader) -> None:
    reader.load()  # not returned: what it opens cannot be pickled


def _start_worker() -> None:
    """Runs once in each worker process."""
    ignore_in_worker()
    os.environ["OMP_NUM_THREADS"] = "1"
    keep_freed_memory()
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """End this process when its parent is gone: after a SIGKILL nobody else would."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
