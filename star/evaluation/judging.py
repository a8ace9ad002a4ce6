"""Judges scored images beyond their reward: what would a policy change that games it?

One judge serves `star evaluate`, `star score` and the study.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from star.config.params import RewardsParams
from star.evaluation.held_out_reader import SecondReading, read_again
from star.evaluation.image_metrics import feature_diversity, image_statistics, pixel_diversity
from star.evaluation.scoring import Sample
from star.rewards.guarded import GuardedReward, in_time
from star.rewards.preference import PreferenceReward
from star.system.memory import memory_for

DIVERSITY_PROMPTS = 32  # of each benchmark


class Judge:
    """The preference model, image statistics, and a second reader of OCR images.

    Args:
        second_reader: ``ppocrv6``, ``template`` or ``none``.
        batch: images judged together.
    """

    def __init__(self, rewards: RewardsParams, second_reader: str, batch: int) -> None:
        self.rewards, self.second_reader, self.batch = rewards, second_reader, batch
        self.preference = PreferenceReward(rewards.preference)
        self._guarded = GuardedReward(self.preference, rewards.timeout)

    def figures(self, samples: Sequence[Sample]) -> list[dict[str, float]]:
        """Return of each image ``preference``, ``edges`` and ``dark``."""
        by_batch = itertools.groupby(samples, key=lambda s: s.planned.number // self.batch)
        return [figures for _, batch in by_batch for figures in self._of_batch(list(batch))]

    def _of_batch(self, samples: Sequence[Sample]) -> list[dict[str, float]]:
        images = np.stack([sample.image for sample in samples])
        with memory_for("scoring"):
            judged = self._guarded.submit(images, [sample.record for sample in samples]).result()
        columns = image_statistics(images)
        columns["preference"] = np.array([detail["score"] for detail in judged.details])
        return [
            {name: float(column[i]) for name, column in columns.items()}
            for i in range(len(samples))
        ]

    def readings(self, samples: Sequence[Sample]) -> list[SecondReading] | None:
        """Return what the second reader reads in OCR images; None if there is no second reader."""
        if self.second_reader == "none":
            return None
        return read_again(
            self.second_reader,
            [sample.image for sample in samples],
            [sample.record for sample in samples],
            self.rewards.ocr.workers,
            self.rewards.timeout,
            self.batch,
        )

    def diversities(
        self, images: np.ndarray, others: np.ndarray, first_id: str
    ) -> dict[str, np.ndarray]:
        """Return ``diversity`` and ``feature_diversity`` of image i and other i, of one prompt.

        Args:
            images, others: uint8 (n, height, width, 3), from different noise.
            first_id: of the first record, for messages.
        """
        named = f"{first_id} and {len(images) - 1} more: features of reward {self.preference.name}"
        with memory_for("scoring"):
            features = in_time(
                lambda: feature_diversity(self.preference, images, others),
                named,
                self.rewards.timeout,
            )
        return {"diversity": pixel_diversity(images, others), "feature_diversity": features}
