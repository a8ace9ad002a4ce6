"""Turns rewards into credit: core tokens of the prompts, group advantages, allocation maps."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from star.config.params import AllocationParams, TrainParams
from star.method.allocation import allocation_weights, controlled, exchanged
from star.method.attention import CoreKeys
from star.method.objective import factors_without_zeros, group_advantages
from star.method.seeds import seed_of
from star.policy.sd3 import SD3Policy
from star.prompts.core_tokens import clause_records, require_core_tokens, scattered
from star.prompts.records import PromptRecord
from star.rewards.base import RewardResult
from star.system.errors import StarError
from star.system.processes import Processes
from star.training.algorithm import Rollouts, Scored
from star.training.batches import Batch


class Credit:
    """Gives each rollout its advantages, and the maps that spread them over steps and places.

    Args:
        seed: of the run.
        core_weights: weight of each kind of span in the core content.
        processes: groups and the spread of rewards are those of all together.
    """

    def __init__(
        self,
        policy: SD3Policy,
        seed: int,
        core_weights: Mapping[str, float],
        train: TrainParams,
        allocation: AllocationParams,
        processes: Processes,
    ) -> None:
        self.policy, self.seed, self.core_weights = policy, seed, core_weights
        self.train, self.allocation, self.processes = train, allocation, processes
        self.clause_wise = allocation.clause_wise and allocation.uses_maps
        # Of a prompt each text position's weight for each clause, (K, text tokens), and how many
        # positions have one.
        self._core: dict[tuple[str, bool], tuple[Tensor, int]] = {}

    def prepare(self, records: Sequence[PromptRecord], clause_wise: bool) -> None:
        """Mark the core tokens of records not seen before, in one copy to the device."""
        new = {r.id: r for r in records if (r.id, clause_wise) not in self._core}
        if not new:
            return
        weights = [self._core_weights(record, clause_wise) for record in new.values()]
        moved = torch.cat(weights).to(self.policy.device).split([len(each) for each in weights])
        for name, row, own in zip(new, moved, weights, strict=True):
            self._core[name, clause_wise] = row, int((own.sum(0) > 0).sum())

    def core_keys(self, records: Sequence[PromptRecord], clause_wise: bool) -> CoreKeys:
        """Return the core tokens of a batch as keys of the joint attention."""
        self.prepare(records, clause_wise)
        rows, counts = zip(*(self._core[r.id, clause_wise] for r in records), strict=True)
        return CoreKeys.from_weights(_padded(rows), max(counts))

    def weigh(
        self,
        epoch: int,
        planned: Sequence[Batch],
        trajectories: Sequence[Rollouts],
        results: Sequence[RewardResult],
    ) -> list[Scored]:
        """Return this process's rollouts with maps and advantages normalised over the epoch.

        Args:
            planned: the epoch's batches, of all processes.
            trajectories, results: of this process's shard of them.
        """
        batches = self.processes.shard(planned, self.train.updates_per_epoch)
        credit = self.advantages(batches, results)
        maps: list[Tensor | None] = [trajectory.relevance for trajectory in trajectories]
        if self.allocation.source == "other_rollout":
            maps = [*self._maps_of_others(planned, [m for m in maps if m is not None])]
        scored = []
        for batch, trajectory, relevance, (advantage, factors) in zip(
            batches, trajectories, maps, credit, strict=True
        ):
            if relevance is None:
                weights = self._flat(trajectory, advantage)
            else:
                weights = self._weights(epoch, batch, relevance)
            advantage = advantage[:, : weights.shape[2]]  # without clauses of longer prompts
            scored.append(Scored(batch, trajectory, advantage, weights, factors))
        return scored

    def advantages(
        self, batches: Sequence[Batch], results: Sequence[RewardResult]
    ) -> list[tuple[Tensor, Tensor]]:
        """Return the advantages, (B, K), and factors, (B,), of each of this process's batches.

        Raises:
            StarError: the reward's number of clauses differs from the prompt's.
        """
        updates = self.train.updates_per_epoch
        shares = [share for result in results for share in self._shares(result)]
        if self.clause_wise:
            self._check_clauses([r for batch in batches for r in batch.records], shares)
        rows = _padded(shares).to(self.policy.device)
        everywhere = self.processes.gather(rows.split([len(r.scores) for r in results]), updates)
        gathered, group = torch.cat(everywhere), self.train.group_size
        advantages = group_advantages(gathered, group, self.train.advantage_clip)
        factors = advantages.new_ones(len(advantages))
        if self.train.zero_advantage == "drop":
            factors = factors_without_zeros(gathered, group, updates)
        sizes = [len(part) for part in everywhere]
        parts = list(zip(advantages.split(sizes), factors.split(sizes), strict=True))
        return self.processes.shard(parts, updates)

    def _shares(self, result: RewardResult) -> list[Tensor]:
        """Return each image's score as shares of its clauses, (K,), or whole, (1,)."""
        if self.clause_wise and result.shares is not None:
            return [torch.from_numpy(share) for share in result.shares]
        return list(torch.from_numpy(result.scores[:, None]))

    def _check_clauses(self, records: Sequence[PromptRecord], shares: Sequence[Tensor]) -> None:
        self.prepare(records, True)
        for record, share in zip(records, shares, strict=True):
            clauses = len(self._core[record.id, True][0])
            if len(share) != clauses:  # they would be broadcast, or cut
                raise StarError(
                    f"allocation.clause_wise: prompt {record.id} has {clauses} clauses, but its "
                    f"reward scores {len(share)}; set allocation.clause_wise to false"
                )

    def _weights(self, epoch: int, batch: Batch, relevance: Tensor) -> Tensor:
        allocation, seed = self.allocation, seed_of(self.seed, "control", epoch, batch.number)
        maps = controlled(relevance, allocation.source, seed)
        return allocation_weights(maps, allocation.lam, allocation.temporal, allocation.clause_maps)

    def _flat(self, trajectory: Rollouts, advantage: Tensor) -> Tensor:
        shape = len(trajectory.images), trajectory.steps, 1, self.policy.locations
        return advantage.new_ones(shape)

    def _maps_of_others(self, planned: Sequence[Batch], own: Sequence[Tensor]) -> list[Tensor]:
        """Return relevance maps of rollouts with other prompts, in the shape of ``own``.

        A clause that the other prompt does not have gets a flat map.
        """
        updates, (_, steps, _, locations) = self.train.updates_per_epoch, own[0].shape
        flat = [row for maps in own for row in maps.transpose(1, 2).flatten(2)]  # (K, T * P) each
        rows = _padded(flat).split([len(maps) for maps in own])
        everywhere = torch.cat(self.processes.gather(rows, updates))
        prompts = [record.prompt for batch in planned for record in batch.records]
        moved = exchanged(everywhere, prompts, self.train.group_size)
        parts = self.processes.shard(moved.split([len(b.records) for b in planned]), updates)
        return [
            part[:, : maps.shape[2]].unflatten(2, (steps, locations)).transpose(1, 2)
            for part, maps in zip(parts, own, strict=True)
        ]

    def _core_weights(self, record: PromptRecord, clause_wise: bool) -> Tensor:
        """Return each text position's weight for each clause (or the whole), on the CPU."""
        policy, encoders = self.policy, self.allocation.encoders
        parts = clause_records(record) if clause_wise else [record]
        tokens = [
            require_core_tokens(
                part, policy.tokenizers, policy.text_lengths, self.core_weights, encoders
            )
            for part in parts
        ]
        weights = np.stack([part.weights for part in tokens])
        if self.allocation.source == "random_tokens":
            words = np.logical_and.reduce([part.others for part in tokens])
            seed = seed_of(self.seed, "random_tokens", record.id)
            weights = scattered(weights, words, seed)
        return torch.from_numpy(weights)


def _padded(rows: Sequence[Tensor]) -> Tensor:
    """Stack tensors (K_i, ...) to (len(rows), max K_i, ...), filled up with zeros."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
