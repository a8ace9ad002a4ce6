"""The interface of a reward: images and their prompt records in, one score per image out.

A new reward is one class, for example in ``star/rewards/brightness.py``:

    class BrightnessReward(Reward):
        name = "brightness"

        def submit(self, images, records):
            check_batch(self.name, images, records)
            scores = images.mean((1, 2, 3), np.float32) / 255
            return finished(RewardResult(scores, [{"score": float(score)} for score in scores]))

and one entry in `star.rewards.factory.build_reward`. A reward that fails raises `RewardError` with
the record's id: a failure never becomes a score. `submit` returns a future. Rewards with worker
processes run during the next rollout; others return `finished(...)`."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from star.prompts.records import PromptRecord
from star.system.errors import StarError

_GRACE = 20.0  # seconds; a reward that watches its own time can say where it hangs


class RewardError(StarError):
    """A reward could not be computed; the message names the record's id."""


@dataclass(frozen=True)
class RewardResult:
    """Scores of n images; ``shares`` is None if the reward does not score clauses separately."""

    scores: np.ndarray  # float32 (n,), in the range that the reward documents
    details: list[dict]  # JSON-able, one per image, for evaluation and report
    # Of each image float32 (clauses,): what each clause of the prompt adds to the score, which is
    # their sum, in the order of `star.prompts.core_tokens.clause_records`.
    shares: list[np.ndarray] | None = None


class Reward(Protocol):
    """Scores images against the records they were generated for."""

    name: str

    def submit(self, images: np.ndarray, records: Sequence[PromptRecord]) -> "Future[RewardResult]":
        """Start scoring images uint8 (n, height, width, 3), which must not change meanwhile.

        Raises:
            RewardError: here or from the future's ``result()``."""
        ...

    def close(self) -> None:
        """Give back processes and memory; a second call does nothing."""
        return None  # most rewards hold neither


def finished(result: RewardResult) -> "Future[RewardResult]":
    """Return a future that already holds ``result``."""
    future: Future[RewardResult] = Future()
    future.set_result(result)
    return future


def scores_of(
    pending: "Future[RewardResult]", records: Sequence[PromptRecord], timeout: float
) -> RewardResult:
    """Wait for the result of a batch for ``timeout`` + 20 seconds.

    Raises:
        RewardError: no result in time, or the reward's own."""
    try:
        return pending.result(timeout + _GRACE)
    except TimeoutError as error:
        raise RewardError(
            f"{records[0].id} and {len(records) - 1} more: no scores after {timeout:g} s; "
            "is a reward's worker stuck? rewards.timeout allows more"
        ) from error


def check_batch(name: str, images: np.ndarray, records: Sequence[PromptRecord]) -> None:
    """Refuse images that are not uint8 (n, height, width, 3), or not one for each record."""
    shape = images.shape
    if images.dtype != np.uint8 or len(shape) != 4 or shape[::3] != (len(records), 3):
        raise RewardError(
            f"{records[0].id if records else 'no record'}: reward {name}: needs uint8 images "
            f"(n, height, width, 3), one per record, got {images.dtype} {shape} for {len(records)}"
        )
