"""Scores a policy on fixed held-out prompts as it learns: the same images each time, of one noise.

The training reward follows the prompts that an epoch happened to draw; these scores do not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from star.evaluation.drawing import ImageDrawer
from star.evaluation.scoring import PlannedImage, Sample
from star.prompts.records import PromptRecord
from star.system.stopwatch import Stopwatch
from star.training.trainer import Trainer


@dataclass(frozen=True)
class HeldOut:
    """Held-out images, each from a noise of its own, and who draws them."""

    trainer: Trainer
    drawer: ImageDrawer
    planned: Sequence[PlannedImage]

    @staticmethod
    def of(trainer: Trainer, records: Sequence[PromptRecord]) -> "HeldOut":
        """Plan one image of each record, for a training's log."""
        params = trainer.params
        drawer = ImageDrawer(
            trainer.policy,
            params.rollout.steps,
            params.rollout.batch,  # as many fit beside the optimizer
            params.seed,
            processes=trainer.processes,
        )
        return HeldOut(trainer, drawer, drawer.plan(records, 1))

    def samples(self) -> list[Sample]:
        """Draw this process's shard with the averaged adapter (EMA) and score it."""
        timeout = self.trainer.params.rewards.timeout
        watch = Stopwatch("sampling", "scoring")
        with self.trainer.averaged():
            return self.drawer.score(self.planned, self.trainer.reward, timeout, watch)

    def mean(self) -> float:
        """Return the mean score; every process calls this, each scores its shard."""
        device = self.trainer.policy.device
        scores = torch.zeros(len(self.planned), dtype=torch.float64)
        for sample in self.samples():
            scores[sample.planned.number] = sample.score
        return self.trainer.processes.table(scores.to(device)).sum(0).mean().item()


def choose(records: Sequence[PromptRecord], count: int) -> list[PromptRecord]:
    """Return ``count`` records, or all: as many of each tag, and evenly over the file."""
    ordered = sorted(records, key=lambda record: str(record.metadata.get("tag")))
    count = min(count, len(ordered))
    return [ordered[i * len(ordered) // count] for i in range(count)]
