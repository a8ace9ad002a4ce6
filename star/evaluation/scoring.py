"""Scores images by a reward, whoever drew them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from star.prompts.records import PromptRecord
from star.rewards.base import Reward, RewardError, scores_of
from star.system.memory import memory_for
from star.system.stopwatch import Stopwatch


@dataclass(frozen=True)
class PlannedImage:
    """An image of a benchmark, before it is drawn or read.

    number: among all of the benchmark. index: among those of its prompt. seed: of its noise, None
    where nobody knows it.
    """

    number: int
    record: PromptRecord
    index: int
    seed: int | None

    @property
    def file(self) -> str:
        """Return the name of its file in a folder of images."""
        return f"{self.record.id}_{self.index}.png"


@dataclass(frozen=True)
class Sample:
    """A scored image. image: uint8 (height, width, 3); detail: what the reward says of it."""

    planned: PlannedImage
    image: np.ndarray
    score: float
    detail: dict

    @property
    def record(self) -> PromptRecord:
        return self.planned.record


def in_batches(planned: Sequence[PlannedImage], size: int) -> list[Sequence[PlannedImage]]:
    """Cut images into batches: an image's last bits may depend on its neighbours."""
    return [planned[start : start + size] for start in range(0, len(planned), size)]


def score_batches(
    batches: Iterable[tuple[Sequence[PlannedImage], np.ndarray]],
    reward: Reward,
    timeout: float,
    watch: Stopwatch,
) -> list[Sample]:
    """Score batches of images; a reward with processes of its own scores while the next is made.

    Args:
        batches: what the images are, and the images, uint8 (n, height, width, 3).
        timeout: seconds that one batch may take.
        watch: its phase ``scoring`` gets the time that the scores are waited for.

    Raises:
        RewardError: the reward failed; the message names the record's id.
    """
    pending = []
    for batch, images in batches:
        records = [planned.record for planned in batch]
        with memory_for("scoring"):  # networks score before they return
            pending.append((batch, images, reward.submit(images, records)))
    samples = []
    with watch("scoring"):
        for batch, images, result in pending:
            scored = scores_of(result, [planned.record for planned in batch], timeout)
            rows = zip(batch, images, scored.scores, scored.details, strict=True)
            for planned, image, score, detail in rows:
                if not np.isfinite(score):
                    raise RewardError(
                        f"{planned.record.id}: reward {reward.name}: a score is not finite"
                    )
                samples.append(Sample(planned, image, float(score), detail))
    return samples
