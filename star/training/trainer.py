"""Training: each epoch samples rollouts, scores them, weighs the advantages over space and time,
and updates the adapter.

Flow-GRPO (arXiv 2505.05470) with STAR's allocation (arXiv 2606.17979). Where we part from
Flow-GRPO's published code: the batches of an update are the batches of the rollout (same geometry,
so the first ratio is exactly 1); all randomness is seeded by what it is for (see
`star.method.seeds`), so resuming needs no generator states; and every per-task setting is data."""

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from star.config.params import AllocationParams, Params
from star.method.allocation import allocation_weights, controlled, exchanged, normalised_entropy
from star.method.attention import CoreKeys
from star.method.ema import Average
from star.method.objective import SURROGATES, Surrogate, group_advantages, kl_penalty, patch_mean
from star.method.sde import Transition, log_ratio
from star.method.seeds import seed_of
from star.policy.adapter import base_fingerprint
from star.policy.rollout import NotFinite, Trajectory, roll_out
from star.policy.sd3 import SD3Policy
from star.prompts.core_tokens import clause_records, core_token_weights, scattered
from star.prompts.records import PromptRecord
from star.rewards.base import Reward, RewardError, RewardResult, scores_of
from star.system.errors import Interrupted, StarError
from star.system.faults import Fault
from star.system.memory import memory_for
from star.system.processes import ALONE, Processes
from star.training.batches import Batch, plan_epoch, window_start
from star.training.checkpoint import optimizer_tensors, restore_optimizer

# How an epoch's facts of several processes become one; others are averaged.
MERGED = {"ratio_min": torch.min, "ratio_max": torch.max, "first_ratio_error": torch.max}
OTHER_BASE = (
    "the state of a training on another base model; set model.path and model.revision to it"
)


@dataclass(frozen=True)
class Scored:
    """A batch after sampling and scoring. advantages: (B, K); weights: allocation maps (B, T, K,
    P)."""

    batch: Batch
    trajectory: Trajectory
    advantages: Tensor
    weights: Tensor


class Trainer:
    """The phases of an epoch, and the state between two epochs. `star.training.loop` runs it.

    ``interrupted`` is asked between two batches (of several processes: where all meet); if it is
    true, the epoch ends with `Interrupted`. An epoch that ends early leaves adapter, average and
    optimizer anywhere: restore a state."""

    def __init__(
        self,
        params: Params,
        allocation: AllocationParams,
        records: Sequence[PromptRecord],
        reward: Reward,
        policy: SD3Policy,
        processes: Processes = ALONE,
    ) -> None:
        self.params, self.records, self.reward, self.policy = params, records, reward, policy
        self.processes = processes
        train = params.train
        self.schedule = policy.schedule(params.rollout.steps)
        self.base = base_fingerprint(policy.transformer)
        self.parameters = policy.add_adapter(seed_of(params.seed, "adapter"))
        policy.compile()
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=train.learning_rate, weight_decay=train.weight_decay
        )
        self.average = Average(self.parameters, train.ema_decay, train.ema_every)
        # Half precision alone: bf16 and float32 have the range that gradients need.
        self.scaler = torch.amp.GradScaler(
            policy.device.type, enabled=policy.model.precision == "fp16"
        )
        self.epoch = self.updates = self.skipped = 0
        self.interrupted: Callable[[], bool] = lambda: False
        self.allocate(allocation)

    def allocate(self, allocation: AllocationParams) -> None:
        """Spread advantages by ``allocation`` from now on."""
        self.allocation = allocation
        self.uses_maps = allocation.uses_maps
        flat = allocation.source != "uniform" and not self.uses_maps
        self.compute_surrogate = SURROGATES["scalar" if flat else allocation.objective]
        self._core: dict[tuple[str, bool], Tensor] = {}

    # -- one epoch: sample, score, weigh, update ---------------------------------------------------

    def train_epoch(self) -> dict:
        """Run one epoch and return its log line.

        Raises:
            Fault: a reward that fails, a score or gradient that is not finite; nothing has been
                learnt from it.
            Interrupted: see the class.
            StarError: memory ran out; names the phase.
        """
        updates = self.params.train.updates_per_epoch
        batches = self.processes.shard(plan_epoch(self.records, self.params, self.epoch), updates)
        seconds = {"rollout": 0.0, "reward": 0.0, "update": 0.0}
        with memory_for("rollout"):
            trajectories, pending = self.draw(batches, seconds)
        clock = time.perf_counter()
        with memory_for("reward"):
            results = [
                self.collect(*each) for each in zip(batches, trajectories, pending, strict=True)
            ]
        self.pause(together=True)
        seconds["reward"] += time.perf_counter() - clock
        clock = time.perf_counter()
        with memory_for("update"):
            scored = self.weigh(batches, trajectories, results)
            scores = [
                torch.from_numpy(result.scores)[:, None].to(self.policy.device)
                for result in results
            ]
            rewards = torch.cat(self.processes.gather(scores, updates)).squeeze(1).cpu().numpy()
            line = {"epoch": self.epoch + 1, **reward_facts(rewards, self.params.train.group_size)}
            line |= self.update(scored)
        seconds["update"] = time.perf_counter() - clock
        self.epoch += 1
        images = self.params.images_per_epoch
        line |= {
            "images": images * self.epoch,
            "updates": self.updates,
            "skipped": self.skipped,
            "seconds": seconds,
        }
        return line | {"images_per_s": images / sum(seconds.values())}

    def pause(self, together: bool = False) -> None:
        """Where an epoch may end early.

        Raises:
            Interrupted: this process, or another, was asked to stop.
        """
        if (together or self.processes.count == 1) and self.processes.any(self.interrupted()):
            raise Interrupted(
                "asked to stop; the same command goes on from the state that is saved"
            )

    def draw(
        self, batches: Sequence[Batch], seconds: dict[str, float]
    ) -> tuple[list[Trajectory], list[Future[RewardResult]]]:
        """Sample batches and hand them to the reward, each at once or all after the last one (see
        `overlaps`).

        Args:
            seconds: what it takes is added to ``rollout`` and, as far as the reward did not return
        at once, ``reward``."""
        trajectories: list[Trajectory] = []
        pending: list[Future[RewardResult]] = []
        for i, batch in enumerate(batches):
            clock = time.perf_counter()
            trajectories.append(self.sample(batch))
            submitted = time.perf_counter()
            if overlaps(self.policy.device) or i == len(batches) - 1:
                for late in range(len(pending), i + 1):
                    pending.append(self.submit(batches[late], trajectories[late]))
            seconds["rollout"] += submitted - clock
            seconds["reward"] += time.perf_counter() - submitted
            self.pause()
        return trajectories, pending

    def submit(self, batch: Batch, trajectory: Trajectory) -> Future[RewardResult]:
        try:
            with memory_for("reward"):  # networks score at once
                return self.reward.submit(trajectory.images, batch.records)
        except RewardError as error:
            raise self.reward_fault(error, batch, trajectory) from error

    def collect(
        self, batch: Batch, trajectory: Trajectory, pending: Future[RewardResult]
    ) -> RewardResult:
        """The scores of a batch, all finite."""
        try:
            result = scores_of(pending, batch.records, self.params.rewards.timeout)
            wrong = [
                r.id
                for r, score in zip(batch.records, result.scores, strict=True)
                if not np.isfinite(score)
            ]
            if wrong:
                raise RewardError(f"{wrong[0]}: reward {self.reward.name}: a score is not finite")
        except RewardError as error:
            raise self.reward_fault(error, batch, trajectory) from error
        return result

    def reward_fault(self, error: RewardError, batch: Batch, trajectory: Trajectory) -> Fault:
        """With the images of the record that the error begins with, or of the whole batch."""
        named = str(error).split(":")[0]
        rows = [i for i, record in enumerate(batch.records) if record.id == named] or range(
            len(batch.records)
        )
        facts = batch.facts()
        return Fault(str(error), [facts[i] for i in rows], trajectory.images[list(rows)])

    def sample(self, batch: Batch) -> Trajectory:
        core = (
            self.core_keys(batch.records, self.allocation.clause_wise) if self.uses_maps else None
        )
        try:
            return roll_out(
                self.policy,
                [record.prompt for record in batch.records],
                batch.start_seeds,
                batch.step_seeds,
                self.params.rollout,
                window_start(self.params.rollout, self.epoch),
                core,
                self.allocation,
            )
        except NotFinite as error:
            raise Fault(f"epoch {self.epoch + 1}: {error}", batch.facts()) from error

    def weigh(
        self,
        batches: Sequence[Batch],
        trajectories: Sequence[Trajectory],
        results: Sequence[RewardResult],
    ) -> list[Scored]:
        """Advantages of this process's rollouts among all of the epoch, and the maps that spread
        them."""
        relevances: list[Tensor | None] = [trajectory.relevance for trajectory in trajectories]
        if self.allocation.source == "other_rollout":
            relevances = [*self.maps_of_others([maps for maps in relevances if maps is not None])]
        scored = []
        for batch, trajectory, relevance, advantage in zip(
            batches, trajectories, relevances, self.advantages(batches, results), strict=True
        ):
            if relevance is None:
                steps, rollouts = trajectory.means.shape[:2]
                locations = patch_mean(trajectory.means[0], self.policy.patch).shape[1]
                weights = advantage.new_ones(rollouts, steps, 1, locations)
            else:
                seed = seed_of(self.params.seed, "control", self.epoch, batch.number)
                how = self.allocation
                maps = controlled(relevance, how.source, seed)
                weights = allocation_weights(maps, how.lam, how.temporal, how.clause_maps)
                advantage = advantage[
                    :, : weights.shape[2]
                ]  # the batch may lack the epoch's longest prompt
            scored.append(Scored(batch, trajectory, advantage, weights))
        return scored

    def maps_of_others(self, own: Sequence[Tensor]) -> list[Tensor]:
        """In place of the relevance maps of each of this process's batches, (B, T, K, P), those of
        rollouts with other prompts, among the rollouts of all processes.

        A clause that the other prompt does not have gets a flat map.
        """
        updates, (_, steps, _, locations) = self.params.train.updates_per_epoch, own[0].shape
        rows = _padded(
            [row for maps in own for row in maps.transpose(1, 2).flatten(2)]
        )  # (rollouts, K, T * P)
        everywhere = torch.cat(
            self.processes.gather(rows.split([len(maps) for maps in own]), updates)
        )
        batches = plan_epoch(self.records, self.params, self.epoch)
        prompts = [record.prompt for batch in batches for record in batch.records]
        moved = exchanged(everywhere, prompts, self.params.train.group_size)
        parts = self.processes.shard(moved.split([len(batch.records) for batch in batches]), updates)
        return [
            part[:, : maps.shape[2]].unflatten(2, (steps, locations)).transpose(1, 2)
            for part, maps in zip(parts, own, strict=True)
        ]

    def advantages(self, batches: Sequence[Batch], results: Sequence[RewardResult]) -> list[Tensor]:
        """Of each of this process's batches, (B, K); groups and spread are those of the whole
        epoch.

        Raises:
            StarError: a reward that tells other clauses apart than the prompt's core does.
        """
        train = self.params.train
        clause_wise = self.allocation.clause_wise and self.uses_maps
        shares = [share for result in results for share in _clause_shares(result, clause_wise)]
        records = [record for batch in batches for record in batch.records]
        for record, share in zip(records if clause_wise else (), shares, strict=clause_wise):
            clauses = len(self._core[record.id, True])
            if len(share) != clauses:  # they would be broadcast, or cut
                raise StarError(
                    f"allocation.clause_wise: prompt {record.id} has {clauses} clauses, and the reward "
                    f"{self.reward.name} gives shares for {len(share)}; set it to false"
                )
        rows = _padded(shares)
        parts = rows.to(self.policy.device).split([len(result.scores) for result in results])
        everywhere = self.processes.gather(parts, train.updates_per_epoch)
        advantages = group_advantages(torch.cat(everywhere), train.group_size, train.advantage_clip)
        by_batch = advantages.split([len(part) for part in everywhere])
        return self.processes.shard(by_batch, train.updates_per_epoch)

    def update(self, scored: Sequence[Scored]) -> dict:
        """The epoch's optimizer steps, each over its share of the batches; returns the log's update
        facts."""
        train = self.params.train
        share = len(scored) // train.updates_per_epoch
        steps = len(scored[0].trajectory.means)
        ratios, clipped, norms, losses = [], [], [], []
        penalties: list[Tensor] = []
        for start in range(0, len(scored), share):
            for item in scored[start : start + share]:
                for row in range(steps):
                    surrogate, transition = self.surrogate(item, row)
                    loss = surrogate.loss
                    # Without a penalty the KL is still logged, of the epoch's first step: it costs
                    # a forward pass.
                    logged = self.processes.main and not penalties
                    if train.kl_form != "none" and (train.kl_beta > 0 or logged):
                        penalty = self.penalty(item, row, transition)
                        penalties.append(penalty.detach())
                        if train.kl_beta > 0:
                            loss = loss + train.kl_beta * penalty
                    self.scaler.scale(loss / (share * steps)).backward()
                    losses.append(loss.detach())
                    ratios.append(surrogate.ratio.flatten())
                    clipped.append(surrogate.clipped)
                    self.pause()
            if start == 0:
                self.check_first_ratios(ratios, clipped)
            norms.append(self.step(scored[start : start + share], losses[-share * steps :]))
        every = torch.cat(ratios)
        fresh = torch.cat(ratios[: share * steps])  # before the first optimizer step: exactly 1
        facts = {
            "loss": torch.stack(losses).mean(),
            "ratio_mean": every.mean(),
            "ratio_min": every.min(),
            "ratio_max": every.max(),
            "first_ratio_error": (fresh - 1).abs().max(),
            "clip_fraction": torch.stack(clipped).mean(),
            "kl": torch.stack(penalties).mean() if penalties else every.new_tensor(math.nan),
            "grad_norm": torch.stack(norms).mean(),
            "map_entropy": torch.stack(
                [normalised_entropy(item.weights) for item in scored]
            ).mean(),
        }
        table = self.processes.table(torch.stack(list(facts.values())))  # (processes, facts)
        line = {
            name: MERGED.get(name, torch.nanmean)(column).item()
            for name, column in zip(facts, table.T, strict=True)
        }
        unknown = {"kl": math.isnan(line["kl"]), "map_entropy": not self.uses_maps}
        return {name: None if unknown.get(name) else value for name, value in line.items()}

    def check_first_ratios(self, ratios: Sequence[Tensor], clipped: Sequence[Tensor]) -> None:
        """Before an epoch's first optimizer step the policy is the one that drew the rollouts:
        nothing may be clipped.

        Raises:
            StarError: rollout and update compute it differently, by more than the clip range.
        """
        if self.processes.any(bool(torch.stack(list(clipped)).any())):
            worst = (torch.cat(list(ratios)) - 1).abs().max().item()
            raise StarError(
                f"epoch {self.epoch + 1}: ratios are off 1 by up to {worst:.2g} before the first update, outside "
                f"train.clip_range {self.params.train.clip_range:g}: rollout and update compute the same policy "
                f'differently. Set model.compile to "no" (it is {self.params.model.compile}), or model.precision to '
                f'"no" (it is {self.policy.model.precision})'
            )

    def step(self, items: Sequence[Scored], losses: Sequence[Tensor]) -> Tensor:
        """One optimizer step with the gradients that ``items`` left; returns their norm.

        Gradients that are not finite are never trained on. Half precision's overflows are skipped
        until the scale of the loss fits; others as often as `TrainParams.skip_updates` allows."""
        train = self.params.train
        self.processes.average(p.grad for p in self.parameters if p.grad is not None)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, train.max_grad_norm)
        self.pause(together=True)
        if norm.isfinite():
            self.scaler.step(self.optimizer)
        else:
            overflow = self.scaler.is_enabled() and self.scaler.get_scale() > 1
            if not overflow and self.skipped >= train.skip_updates:
                raise self.update_fault(items, losses)
            self.skipped += 1
        self.scaler.update()
        self.optimizer.zero_grad()
        self.updates += 1
        self.average.update(self.parameters, self.updates)
        return norm

    def update_fault(self, items: Sequence[Scored], losses: Sequence[Tensor]) -> Fault:
        """With the batches whose loss is not finite, or all where only the gradient is not."""
        steps = len(losses) // len(items)
        values = torch.stack(list(losses)).view(len(items), steps).tolist()
        bad = [i for i, row in enumerate(values) if not np.isfinite(row).all()] or range(len(items))
        rollouts = [
            fact | {"losses": [str(x) for x in values[i]]}
            for i in bad
            for fact in items[i].batch.facts()
        ]
        return Fault(
            f"epoch {self.epoch + 1}, update {self.updates + 1}: the loss or a gradient is not finite; nothing was "
            "learnt from it. A lower train.learning_rate or model.precision: bf16 may help; train.skip_updates allows "
            "some",
            rollouts,
        )

    def surrogate(self, item: Scored, row: int) -> tuple[Surrogate, Transition]:
        """The clipped surrogate of one trained step of one batch, and the current policy's
        transition."""
        train, trajectory = self.params.train, item.trajectory
        transition = self.transition(item, row)
        elements = log_ratio(
            trajectory.latents[row + 1], transition, trajectory.means[row], train.normalise_ratio
        )
        locations = patch_mean(elements, self.policy.patch)
        return self.compute_surrogate(
            locations, item.advantages, item.weights[:, row], train.clip_range
        ), transition

    def penalty(self, item: Scored, row: int, transition: Transition) -> Tensor:
        """KL of one step of one batch from the base model's, by a second forward pass without the
        adapter."""
        with torch.no_grad(), self.policy.reference():
            reference = self.transition(item, row)
        return kl_penalty(transition, reference.mean, self.params.train.kl_form)

    def transition(self, item: Scored, row: int) -> Transition:
        return item.trajectory.transition(self.policy, row, self.schedule, self.params.rollout)

    def core_keys(self, records: Sequence[PromptRecord], clause_wise: bool) -> CoreKeys:
        """Core tokens of a batch as keys of the joint attention."""
        for record in records:
            if (record.id, clause_wise) not in self._core:
                self._core[record.id, clause_wise] = self._core_weights(record, clause_wise)
        return CoreKeys.from_weights(
            _padded([self._core[record.id, clause_wise] for record in records])
        )

    def _core_weights(self, record: PromptRecord, clause_wise: bool) -> Tensor:
        """Weight of each text position for each clause (or for the whole): float32 (K, text
        tokens)."""
        policy, kinds, encoders = self.policy, self.params.core.weights, self.allocation.encoders
        tokens = [
            core_token_weights(part, policy.tokenizers, policy.text_lengths, kinds, encoders)
            for part in (clause_records(record) if clause_wise else [record])
        ]
        weights = np.stack([part.weights for part in tokens])
        if self.allocation.source == "random_tokens":
            words = np.logical_and.reduce([part.others for part in tokens])
            weights = scattered(
                weights, words, seed_of(self.params.seed, "random_tokens", record.id)
            )
        return torch.from_numpy(weights).to(policy.device)

    # -- what the run leaves behind ----------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """Copies, on the CPU, of all tensors that the next epochs depend on, and the counters.

        There is no generator among them: all noise is seeded by what it is for.
        """
        tensors: dict[str, Tensor] = {f"adapter.{i}": p for i, p in enumerate(self.parameters)}
        tensors |= {f"ema.{i}": v for i, v in enumerate(self.average.values)}
        tensors |= optimizer_tensors(self.optimizer, "optimizer.")
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        facts = {
            "epoch": self.epoch,
            "updates": self.updates,
            "skipped": self.skipped,
            "base": self.base,
        }
        return copies, facts | {"scaler": self.scaler.state_dict()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], facts: dict) -> None:
        """Go back to a `state`.

        Raises:
            StarError: it is of a training on another base model.
        """
        if facts["base"] != self.base:
            raise StarError(OTHER_BASE)
        for i, (parameter, value) in enumerate(
            zip(self.parameters, self.average.values, strict=True)
        ):
            parameter.copy_(tensors[f"adapter.{i}"])
            value.copy_(tensors[f"ema.{i}"])
        restore_optimizer(self.optimizer, tensors, "optimizer.")
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(facts["scaler"])
        self.epoch, self.updates, self.skipped = facts["epoch"], facts["updates"], facts["skipped"]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The policy has the averaged adapter inside, and its own again afterwards."""
        own = [parameter.detach().clone() for parameter in self.parameters]
        with torch.no_grad():
            torch._foreach_copy_(list(self.parameters), self.average.values)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(list(self.parameters), own)

    def export(self, work: Path, output: Path) -> None:
        """Write the EMA adapter, the log, the grids and the maps into ``output``."""
        output.mkdir(parents=True, exist_ok=True)
        with self.averaged():
            self.policy.save_adapter(output / "adapter")
        shutil.copy(work / "log.jsonl", output / "log.jsonl")
        for folder in ("samples", "maps"):
            (output / folder).mkdir(exist_ok=True)
            if (work / folder).exists():
                shutil.copytree(work / folder, output / folder, dirs_exist_ok=True)


def overlaps(device: torch.device) -> bool:
    """Whether images are scored while the next batch is drawn.

    Beside a GPU, the CPU scores meanwhile. On a CPU both would wait for the same cores: two threads
    of one product, of which one is slowed, cost more than the scoring."""
    return device.type != "cpu"


def _clause_shares(result: RewardResult, clause_wise: bool) -> list[Tensor]:
    """Shares of each image's score, (K,): of its clauses, or the score alone."""
    if clause_wise and result.shares is not None:
        return [torch.from_numpy(share) for share in result.shares]
    return list(torch.from_numpy(result.scores[:, None]))


def _padded(rows: Sequence[Tensor]) -> Tensor:
    """Tensors (K_i, ...) -> (len(rows), max K_i, ...), filled up with zeros."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def reward_facts(rewards: np.ndarray, group_size: int) -> dict:
    """Mean and spread of an epoch's rewards, and the share of groups that teach nothing."""
    groups = rewards.reshape(-1, group_size)
    return {
        "reward_mean": float(rewards.mean()),
        "reward_std": float(rewards.std()),
        "groups_without_variance": float((groups.std(1) < 1e-6).mean()),
    }
