"""Requests to stop, as schedulers send them before a time limit or for a more urgent job.

SIGTERM and SIGUSR1 are remembered, and a loop looks for them between two batches. A second SIGTERM
ends the process immediately. One within `SAME` seconds counts as the first: a scheduler signals all
processes of a job, and a launcher among them hands the signal on."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
SAME = 1.0  # seconds


@contextmanager
def listening() -> Iterator[Callable[[], bool]]:
    """Give a function that tells whether the process was asked to stop; main thread only.

    After an error the handlers stay: a signal must not end the process before the error is told.
    """
    asked: float | None = None

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked is None:
            asked = time.monotonic()
        elif number == signal.SIGTERM and time.monotonic() - asked > SAME:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    before = {number: signal.signal(number, remember) for number in SIGNALS}
    yield lambda: asked is not None
    for number, handler in before.items():
        signal.signal(number, handler)


def ignore_in_worker() -> None:
    """Leave SIGUSR1 and SIGINT, which a scheduler sends to all, to the parent of this worker.

    SIGTERM still ends a worker: that is how its pool ends it."""
    for number in (signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
