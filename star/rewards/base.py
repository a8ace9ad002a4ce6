"""What a reward is: images and prompt records in, one score an image out, later or at once.

A reward that fails raises `RewardError` with the record's id; a failure never becomes a score.
`submit` returns a future, so that CPU work overlaps the next rollout; an in-process reward returns
an already `finished` one."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from star.prompts.records import PromptRecord
from star.system.errors import StarError


class RewardError(StarError):
    """A reward could not be computed; the message names the record's id."""


@dataclass(frozen=True)
class RewardResult:
    """Scores of n images.

    Attributes:
        scores: float32 (n,), in the range that the reward documents.
        details: one JSON-able dict an image: what evaluation and report show (detections, text
            read, ...).
        shares: what each clause of the prompt contributes to the score, one float32 (clauses,) a
            image that adds up to it, in the order of `star.prompts.core_tokens.clause_records`;
            None where the reward knows no clauses.
    """

    scores: np.ndarray
    details: list[dict]
    shares: list[np.ndarray] | None = None


class Reward(Protocol):
    """Scores images against the records they were generated for."""

    name: str

    def submit(self, images: np.ndarray, records: Sequence[PromptRecord]) -> "Future[RewardResult]":
        """Start scoring.

        Args:
            images: uint8 (n, height, width, 3).
            records: n records, image i belongs to record i.

        Raises:
            RewardError: here or from the future's ``result()``; the message names the record's id.
        """
        ...

    def close(self) -> None:
        """Give back processes and memory; idempotent."""
        ...


_GRACE = 20.0  # seconds


def finished(result: RewardResult) -> "Future[RewardResult]":
    """A future that already holds ``result``."""
    future: Future[RewardResult] = Future()
    future.set_result(result)
    return future


def scores_of(
    pending: "Future[RewardResult]", records: Sequence[PromptRecord], timeout: float
) -> RewardResult:
    """The result of a batch, waited for.

    Args:
        timeout: seconds; a reward that watches itself has a little more, because it can say where
            it hangs.

    Raises:
        RewardError: no result in time, or the reward's own.
    """
    try:
        return pending.result(timeout + _GRACE)
    except TimeoutError as error:
        raise RewardError(
            f"{records[0].id} and {len(records) - 1} more: no scores after {timeout:g} s; is a reward's worker stuck? "
            "rewards.timeout allows more"
        ) from error


def check_batch(name: str, images: np.ndarray, records: Sequence[PromptRecord]) -> None:
    """Refuse images and records that cannot belong together.

    Raises:
        RewardError: ``images`` is not uint8 (n, height, width, 3) with one record an image; names
    the first record."""
    if (
        images.ndim != 4
        or images.shape[-1] != 3
        or images.dtype != np.uint8
        or len(images) != len(records)
    ):
        first = records[0].id if records else "no record"
        raise RewardError(
            f"{first}: reward {name}: wants uint8 (n, height, width, 3) images with one record each, got "
            f"{images.dtype} {images.shape} and {len(records)} records"
        )
