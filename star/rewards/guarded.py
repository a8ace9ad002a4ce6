"""Work of a reward in this process, kept from hanging it and from ending it without a word."""

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


class GuardedReward:
    """Scores as another reward does, in a thread that is waited for: `submit` returns a future that
    is done."""

    def __init__(self, reward: Reward, timeout: float) -> None:
        """``timeout``: seconds that a batch may take."""
        self.reward, self.name, self.timeout = reward, reward.name, timeout

    def submit(self, images: np.ndarray, records: Sequence[PromptRecord]) -> "Future[RewardResult]":
        """As `Reward.submit`.

        Raises:
            RewardError: the reward's own, any other error of its, or no scores in time.
        """
        those = f"{records[0].id} and {len(records) - 1} more: reward {self.name}"
        return finished(
            in_time(lambda: self.reward.submit(images, records).result(), those, self.timeout)
        )

    def close(self) -> None:
        self.reward.close()


def in_time(work: Callable[[], T], those: str, timeout: float) -> T:
    """What ``work`` returns, done in a thread that is waited for.

    Memory that runs out stays the error that it is, for `star.system.memory.memory_for`. A thread
    that hangs cannot be stopped: it does not keep the process from ending.

    Args:
        those: images and reward, with which a message begins.
        timeout: seconds.

    Raises:
        StarError: the work's own.
        RewardError: any other error of the work, or nothing in time.
    """
    done: Future[T] = Future()
    device = torch.cuda.current_device() if torch.cuda.is_available() else None

    def run() -> None:
        try:
            if device is not None:  # a thread of its own begins on the first one
                torch.cuda.set_device(device)
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name=those, daemon=True).start()
    try:
        return done.result(timeout)
    except Exception as error:
        if isinstance(error, StarError) or is_out_of_memory(error):
            raise
        its_own = done.done() and done.exception() is error
        if isinstance(error, TimeoutError) and not its_own:
            raise RewardError(
                f"{those}: no scores after {timeout:g} s; rewards.timeout allows more"
            ) from error
        raise RewardError(f"{those}: {type(error).__name__}: {error}") from error
