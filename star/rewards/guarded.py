"""A reward that computes in this process, kept from hanging it and from ending it without a word."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
import torch

from star.errors import StarError
from star.faults import is_out_of_memory
from star.records import PromptRecord
from star.rewards.base import Reward, RewardError, RewardResult


class GuardedReward:
    """Scores as another reward does, in a thread that is waited for: `submit` returns a future that is done.

    Memory that runs out stays the error that it is, for `star.faults.memory_for`. A thread that hangs cannot be
    stopped; it ends with the process.
    """

    def __init__(self, reward: Reward, timeout: float) -> None:
        """``timeout``: seconds that a batch may take."""
        self.reward, self.name, self.timeout = reward, reward.name, timeout

    def submit(self, images: np.ndarray, records: Sequence[PromptRecord]) -> "Future[RewardResult]":
        """As `Reward.submit`.

        Raises:
            RewardError: the reward's own, any other error of its, or no scores in time.
        """
        scored: Future[RewardResult] = Future()
        device = torch.cuda.current_device() if torch.cuda.is_available() else None

        def score() -> None:
            try:
                if device is not None:  # a thread of its own begins on the first one
                    torch.cuda.set_device(device)
                scored.set_result(self.reward.submit(images, records).result())
            except BaseException as error:
                scored.set_exception(error)

        threading.Thread(target=score, name=self.name, daemon=True).start()
        try:
            scored.result(self.timeout)
        except Exception as error:
            if isinstance(error, StarError) or is_out_of_memory(error):
                raise
            those = f"{records[0].id} and {len(records) - 1} more: reward {self.name}"
            if not scored.done():
                raise RewardError(
                    f"{those}: no scores after {self.timeout:g} s; rewards.timeout allows more"
                ) from error
            raise RewardError(f"{those}: {type(error).__name__}: {error}") from error
        return scored

    def close(self) -> None:
        self.reward.close()
