"""Being asked to stop, as schedulers do before a time limit or for a more urgent job.

SIGTERM and SIGUSR1 are remembered, and whoever works looks between two batches. A second SIGTERM ends the process at
once, as the first one would anywhere else.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def listening() -> Iterator[Callable[[], bool]]:
    """Inside, the yielded function says whether this process was asked to stop. For the main thread."""
    asked = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    before = {number: signal.signal(number, remember) for number in SIGNALS}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_in_worker() -> None:
    """In a worker process: a scheduler signals all, and the parent decides when to end. SIGTERM still ends a worker,
    because that is how its pool ends it."""
    for number in (signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
