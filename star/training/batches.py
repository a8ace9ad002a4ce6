"""Plans the epochs: prompts, seeds and batches, the trained steps, and who shares the batches.

Every number follows from the parameters and the epoch, so a resumed training needs none of it.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from star.config.params import AllocationParams, Params, RolloutParams, TrainParams
from star.method.seeds import seed_of
from star.prompts.records import PromptRecord
from star.system.errors import StarError


@dataclass(frozen=True)
class Batch:
    """One forward pass of rollouts; those of a group lie side by side.

    number: in the epoch's plan. start_seeds, step_seeds: of a rollout's first and later noise.
    groups: number of each rollout's group, from the start of the training.
    """

    number: int
    records: list[PromptRecord]
    start_seeds: list[int]
    step_seeds: list[int]
    groups: list[int]

    def facts(self) -> list[dict]:
        """Return what it takes to draw each rollout again."""
        rows = zip(self.records, self.start_seeds, self.step_seeds, strict=True)
        return [
            {"id": r.id, "prompt": r.prompt, "start_seed": start, "step_seed": step}
            for r, start, step in rows
        ]


@dataclass(frozen=True)
class EpochPlan:
    """What each epoch of a training draws."""

    records: Sequence[PromptRecord]
    seed: int
    train: TrainParams
    rollout: RolloutParams

    def prompts(self, epoch: int) -> list[PromptRecord]:
        """Return an epoch's prompts: each pass over the set has a seeded order of its own."""
        count, size = self.train.prompts_per_epoch, len(self.records)
        taken = []
        positions = range(epoch * count, (epoch + 1) * count)
        for number, group in itertools.groupby(positions, lambda i: i // size):
            order = np.random.default_rng(seed_of(self.seed, "order", number)).permutation(size)
            taken += [self.records[order[i % size]] for i in group]
        return taken

    def batches(self, epoch: int) -> list[Batch]:
        """Return an epoch's rollouts, cut into batches."""
        entries = []
        for slot, record in enumerate(self.prompts(epoch)):
            group = epoch * self.train.prompts_per_epoch + slot
            for rollout in range(self.train.group_size):
                # By ODE steps, rollouts of one noise would be one image.
                shared = self.rollout.same_latent and self.train.algorithm == "flow_grpo"
                start = seed_of(self.seed, "start", group, *(() if shared else (rollout,)))
                step = seed_of(self.seed, "steps", group, rollout)
                entries.append((record, start, step, group))
        size = self.rollout.batch
        parts = [entries[i : i + size] for i in range(0, len(entries), size)]
        return [Batch(number, *map(list, zip(*p, strict=True))) for number, p in enumerate(parts)]

    def all_prompts(self) -> list[PromptRecord]:
        """Return the prompts of all epochs, each once."""
        drawn = (record for epoch in range(self.train.epochs) for record in self.prompts(epoch))
        return list({record.id: record for record in drawn}.values())

    def check_other_prompts(self) -> None:
        """Refuse an epoch of one prompt, for the control ``other_rollout``: no other has a map.

        Raises:
            StarError: names the epoch.
        """
        for epoch in range(self.train.epochs):
            if len({record.prompt for record in self.prompts(epoch)}) == 1:
                raise StarError(
                    f"allocation.source other_rollout: epoch {epoch + 1} has one prompt alone, and "
                    "no map of another; raise train.prompts_per_epoch, or give more prompts"
                )


def window_start(rollout: RolloutParams, epoch: int) -> int:
    """Return the first stochastic step of an epoch.

    The window slides by a step every ``slide_every`` epochs and starts over at step 0. (MixGRPO's,
    arXiv 2507.21802, slides over the updates.)
    """
    first, end = rollout.window
    moves = epoch // rollout.slide_every if rollout.slide_every else 0
    return (first + moves) % (rollout.window_limit + 1 - (end - first))


def looks_ahead(params: Params, allocation: AllocationParams) -> bool:
    """Return whether the policy that drew images sees them noised before they are trained.

    Of awm or nft. It need not where the trained policy is still the same (awm with one update an
    epoch), and each map is of its step and rollout alone: then the training pass reads it. (Not a
    compiled one: blocks that are computed again, without reading, would keep other tensors.)
    """
    if params.train.algorithm == "nft":
        return True
    if params.train.updates_per_epoch > 1:
        return allocation.uses_maps or params.forward.anchor_to == "old"
    own = allocation.source in ("attention", "random_tokens", "guidance")
    alone = own and allocation.temporal == "per_step" and params.model.compile == "no"
    return allocation.uses_maps and not alone


def check_processes(train: TrainParams, rollout: RolloutParams, count: int) -> None:
    """Refuse a number of processes that cannot share the batches of an update evenly.

    Raises:
        StarError: names the numbers that can.
    """
    images = train.prompts_per_epoch * train.group_size
    share = images // rollout.batch // train.updates_per_epoch
    if share % count:
        fit = ", ".join(str(n) for n in range(1, share + 1) if share % n == 0)
        raise StarError(
            f"{count} processes cannot share the {share} batches of an update evenly: launch "
            f"{fit}, or lower rollout.batch (batches: train.prompts_per_epoch x train.group_size / "
            "rollout.batch / train.updates_per_epoch)"
        )
