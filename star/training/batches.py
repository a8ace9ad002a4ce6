"""What an epoch is made of, before anything is drawn: its prompts, seeds and batches, which steps
are trained, and who can share the batches. Every number follows from the parameters and the epoch,
so nothing of it needs saving."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from star.config.params import AllocationParams, Params, RolloutParams
from star.method.seeds import seed_of
from star.prompts.records import PromptRecord
from star.system.errors import StarError


@dataclass(frozen=True)
class Batch:
    """One forward pass of rollouts: its number in the epoch's plan, records repeated group by
    group, and the seeds of their noise."""

    number: int
    records: list[PromptRecord]
    start_seeds: list[int]
    step_seeds: list[int]

    def facts(self) -> list[dict]:
        """What it takes to draw each rollout again."""
        rows = zip(self.records, self.start_seeds, self.step_seeds, strict=True)
        return [
            {"id": r.id, "prompt": r.prompt, "start_seed": a, "step_seed": b} for r, a, b in rows
        ]


def epoch_prompts(
    records: Sequence[PromptRecord], params: Params, epoch: int
) -> list[PromptRecord]:
    """The prompts of an epoch: the set is taken in a new seeded order at each pass."""
    count = params.train.prompts_per_epoch
    taken = []
    for number, group in itertools.groupby(
        range(epoch * count, (epoch + 1) * count), lambda i: i // len(records)
    ):
        order = np.random.default_rng(seed_of(params.seed, "order", number)).permutation(
            len(records)
        )
        taken += [records[order[i % len(records)]] for i in group]
    return taken


def plan_epoch(records: Sequence[PromptRecord], params: Params, epoch: int) -> list[Batch]:
    """The prompts and seeds of an epoch, cut into rollout batches; rollouts of a group lie side by
    side."""
    train, seed = params.train, params.seed
    entries = []
    for slot, record in enumerate(epoch_prompts(records, params, epoch)):
        group = epoch * train.prompts_per_epoch + slot
        for rollout in range(train.group_size):
            start = ("start", group) if params.rollout.same_latent else ("start", group, rollout)
            entries.append((record, seed_of(seed, *start), seed_of(seed, "steps", group, rollout)))
    size = params.rollout.batch
    parts = [entries[i : i + size] for i in range(0, len(entries), size)]
    return [Batch(number, *map(list, zip(*part, strict=True))) for number, part in enumerate(parts)]


def check_other_prompts(
    records: Sequence[PromptRecord], params: Params, allocation: AllocationParams
) -> None:
    """Refuse the control ``other_rollout`` where an epoch has one prompt alone, whose rollouts no
    other gives a map.

    Raises:
        StarError: naming the epoch.
    """
    if allocation.source != "other_rollout":
        return
    for epoch in range(params.train.epochs):
        if len({record.prompt for record in epoch_prompts(records, params, epoch)}) == 1:
            raise StarError(
                f"allocation.source other_rollout: all rollouts of epoch {epoch + 1} have one prompt, and none has the "
                "maps of another; raise train.prompts_per_epoch, or give more prompts"
            )


def window_start(rollout: RolloutParams, epoch: int) -> int:
    """First stochastic step of an epoch: the window slides by a step every ``slide_every`` epochs
    and starts over at step 0 (as MixGRPO's, arXiv 2507.21802, which slides over the updates)."""
    first, end = rollout.window
    moves = epoch // rollout.slide_every if rollout.slide_every else 0
    return (first + moves) % (rollout.steps - (end - first))


def check_processes(params: Params, count: int) -> None:
    """Refuse a number of processes that cannot share the batches of an update evenly.

    Raises:
        StarError: naming the numbers that can.
    """
    share = params.images_per_epoch // params.rollout.batch // params.train.updates_per_epoch
    if share % count:
        fit = ", ".join(str(n) for n in range(1, share + 1) if share % n == 0)
        raise StarError(
            f"{count} processes cannot share the {share} batches of an update evenly (train.prompts_per_epoch x "
            f"train.group_size / rollout.batch / train.updates_per_epoch): launch {fit}, or lower rollout.batch"
        )
