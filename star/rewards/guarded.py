"""A guard for rewards that work in this process: one that hangs or breaks raises `RewardError`."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

import numpy as np
import torch

from star.prompts.records import PromptRecord
from star.rewards.base import Reward, RewardError, RewardResult, finished
from star.system.errors import StarError
from star.system.memory import is_out_of_memory

T = TypeVar("T")


class GuardedReward(Reward):
    """Scores as another reward does, at most ``timeout`` seconds a batch; its futures are done."""

    def __init__(self, reward: Reward, timeout: float) -> None:
        self.reward, self.name, self.timeout = reward, reward.name, timeout

    def submit(self, images: np.ndarray, records: Sequence[PromptRecord]) -> "Future[RewardResult]":
        """Score the images; raises as `in_time`."""
        what = f"{records[0].id} and {len(records) - 1} more: reward {self.name}"
        return finished(
            in_time(lambda: self.reward.submit(images, records).result(), what, self.timeout)
        )

    def close(self) -> None:
        self.reward.close()


def in_time(work: Callable[[], T], what: str, timeout: float) -> T:
    """Return what ``work`` returns, or raise after ``timeout`` seconds.

    The work is done in a thread. One that hangs cannot be stopped, but does not keep the process
    from ending. Memory that runs out stays the error that it is, for `memory_for`.

    Raises:
        StarError: the work's own.
        RewardError: any other error of the work, or nothing in time; begins with ``what``."""
    outcome: Future[T] = Future()
    device = torch.cuda.current_device() if torch.cuda.is_available() else None

    def run() -> None:
        try:
            if device is not None:  # a new thread begins on the first GPU
                torch.cuda.set_device(device)
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=run, name=what, daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise RewardError(f"{what}: no scores after {timeout:g} s; rewards.timeout allows more")
    try:
        return outcome.result()
    except Exception as error:
        if isinstance(error, StarError) or is_out_of_memory(error):
            raise
        raise RewardError(f"{what}: {type(error).__name__}: {error}") from error
