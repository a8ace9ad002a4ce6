"""The phases of an epoch: sample rollouts, score them, weigh the advantages, update the adapter.

Rollouts and losses are the algorithm's (`star.training.algorithm`). What differs from Flow-GRPO's
published code (arXiv 2505.05470):

- The batches of an update are the batches of the rollout, so the first ratio is exactly 1.
- All randomness is seeded by what it is for (`star.method.seeds`): resuming needs no generator.
- Tasks differ only in parameters.
"""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from star.config.params import AllocationParams, Params
from star.method.allocation import normalised_entropy
from star.method.ema import Average, lent
from star.method.seeds import seed_of
from star.policy.rollout import NotFinite
from star.policy.sd3 import SD3Policy
from star.prompts.records import PromptRecord
from star.rewards.base import Reward, RewardError, RewardResult, scores_of
from star.system.errors import Interrupted, StarError
from star.system.faults import Fault
from star.system.files import remove
from star.system.memory import memory_for
from star.system.processes import ALONE, Processes
from star.system.stopwatch import Stopwatch
from star.training.algorithm import Algorithm, Rollouts, Scored, Term
from star.training.batches import Batch, EpochPlan
from star.training.checkpoint import optimizer_tensors, restore_optimizer
from star.training.credit import Credit
from star.training.forward_process import AdvantageWeightedMatching, DiffusionNFT
from star.training.policy_gradient import PolicyGradient

# How one value is made from those of several steps, and processes; others by their mean.
OVER_STEPS = {"ratio_min": torch.min, "ratio_max": torch.max}
MERGED = {**OVER_STEPS, "first_ratio_error": torch.max}
ALGORITHMS: dict[str, type[Algorithm]] = {
    "flow_grpo": PolicyGradient,
    "awm": AdvantageWeightedMatching,
    "nft": DiffusionNFT,
}
OTHER_BASE = (
    "the state of a training on another base model; set model.path and model.revision to it"
)


@dataclass(frozen=True)
class LogLine:
    """One epoch, as log.jsonl has it; means are over all rollouts, steps and locations.

    groups_without_variance: share of groups whose rewards are all equal. map_entropy: of the maps,
    in [0, 1]; None without maps. images, updates, skipped: since the training's start. seconds: by
    phase. loss, grad_norm: None where an update was skipped.

    Of flow_grpo: first_ratio_error: largest |ratio - 1| before the first update. clip_fraction:
    share of ratios outside the clip range, or dropped by kl_mask. kl: None if kl_form is none. Of
    awm and nft: drift: mean squared distance from the velocity of the anchor; None for a base
    without weight. `star.training.loop` adds held_out where it is due.
    """

    epoch: int
    reward_mean: float
    reward_std: float
    groups_without_variance: float
    loss: float | None
    grad_norm: float | None
    map_entropy: float | None
    images: int
    updates: int
    skipped: int
    seconds: dict[str, float]
    images_per_s: float
    ratio_mean: float | None = None
    ratio_min: float | None = None
    ratio_max: float | None = None
    first_ratio_error: float | None = None
    clip_fraction: float | None = None
    kl: float | None = None
    drift: float | None = None


class Trainer:
    """The phases of an epoch, and the state between two epochs. `star.training.loop` runs it.

    Args:
        records: training prompts with their core.
        interrupted: asked between batches. If it returns True, the epoch ends with `Interrupted`.

    After an epoch that ended early the weights are half updated: call `restore`.
    """

    def __init__(
        self,
        params: Params,
        allocation: AllocationParams,
        records: Sequence[PromptRecord],
        reward: Reward,
        policy: SD3Policy,
        processes: Processes = ALONE,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self.params, self.records, self.reward, self.policy = params, records, reward, policy
        self.processes, self.interrupted = processes, interrupted
        self.train = params.train
        self.plan = EpochPlan(records, params.seed, params.train, params.rollout)
        self.parameters = policy.add_adapter(seed_of(params.seed, "adapter"))
        if self.train.init_adapter is not None:
            policy.start_from(Path(self.train.init_adapter))
        policy.compile()
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=self.train.learning_rate, weight_decay=self.train.weight_decay
        )
        self.average = Average(self.parameters, self.train.ema_decay, self.train.ema_every)
        # Only fp16 needs this: bf16 and float32 have the range that gradients need.
        half = policy.model.precision == "fp16"
        self.scaler = torch.amp.GradScaler(policy.device.type, enabled=half)
        self.epoch = self.updates = self.skipped = 0
        self.allocate(allocation)

    def allocate(self, allocation: AllocationParams) -> None:
        """Spread advantages by ``allocation`` from now on; an old policy begins anew."""
        self.allocation = allocation
        self.credit = Credit(
            self.policy,
            self.params.seed,
            self.params.core.weights,
            self.train,
            allocation,
            self.processes,
        )
        algorithm = ALGORITHMS[self.train.algorithm]
        self.algorithm = algorithm(self.params, allocation, self.policy, self.processes)

    # -- one epoch: sample, score, weigh, update ---------------------------------------------------

    def train_epoch(self) -> LogLine:
        """Run one epoch and return its log line.

        Raises:
            Fault: a reward that fails, a score or gradient that is not finite; nothing was trained
                on it.
            Interrupted: see the class.
            StarError: memory ran out; names the phase.
        """
        planned = self.plan.batches(self.epoch)
        batches = self.processes.shard(planned, self.train.updates_per_epoch)
        watch = Stopwatch("rollout", "reward", "update")
        with memory_for("rollout"):
            trajectories, pending = self.draw(batches, watch)
        with watch("reward"), memory_for("reward"):
            results = [
                self.collect(*each) for each in zip(batches, trajectories, pending, strict=True)
            ]
        self.pause()
        with watch("update"), memory_for("update"):
            scored = self.credit.weigh(self.epoch, planned, trajectories, results)
            facts = self.reward_facts(results) | self.update(scored)
            self.algorithm.follow(self.updates)
        self.epoch += 1
        images = self.params.images_per_epoch
        return LogLine(
            epoch=self.epoch,
            **facts,
            images=images * self.epoch,
            updates=self.updates,
            skipped=self.skipped,
            seconds=watch.seconds,
            images_per_s=images / sum(watch.seconds.values()),
        )

    def pause(self) -> None:
        """End the epoch here if any process was asked to stop; all come here equally often.

        Raises:
            Interrupted: this process, or another, was asked to stop.
        """
        if self.processes.any(self.interrupted()):
            raise Interrupted(
                "asked to stop; the same command goes on from the state that is saved"
            )

    def draw(
        self, batches: Sequence[Batch], watch: Stopwatch
    ) -> tuple[list[Rollouts], list[Future[RewardResult]]]:
        """Sample batches; submit each to the reward now (GPU) or after the last batch (CPU)."""
        trajectories: list[Rollouts] = []
        pending: list[Future[RewardResult]] = []
        for i, batch in enumerate(batches):
            with watch("rollout"):
                trajectories.append(self.sample(batch))
            with watch("reward"):
                if overlaps(self.policy.device) or i == len(batches) - 1:
                    for late in range(len(pending), i + 1):
                        pending.append(self.submit(batches[late], trajectories[late]))
            self.pause()
        return trajectories, pending

    def sample(self, batch: Batch) -> Rollouts:
        """Draw the rollouts of a batch; `Fault` if an image is not finite."""
        core = None
        if self.allocation.uses_maps:
            core = self.credit.core_keys(batch.records, self.allocation.clause_wise)
        try:
            return self.algorithm.draw(batch, self.epoch, core)
        except NotFinite as error:
            raise Fault(f"epoch {self.epoch + 1}: {error}", batch.facts()) from error

    def submit(self, batch: Batch, trajectory: Rollouts) -> Future[RewardResult]:
        """Start scoring a batch; `Fault` if the reward fails."""
        try:
            with memory_for("reward"):  # networks score before they return
                return self.reward.submit(trajectory.images, batch.records)
        except RewardError as error:
            raise self.reward_fault(error, batch, trajectory) from error

    def collect(
        self, batch: Batch, trajectory: Rollouts, pending: Future[RewardResult]
    ) -> RewardResult:
        """Return the scores of a batch, all finite."""
        try:
            result = scores_of(pending, batch.records, self.params.rewards.timeout)
            scored = zip(batch.records, result.scores, strict=True)
            if wrong := [record.id for record, score in scored if not np.isfinite(score)]:
                raise RewardError(f"{wrong[0]}: reward {self.reward.name}: a score is not finite")
        except RewardError as error:
            raise self.reward_fault(error, batch, trajectory) from error
        return result

    def reward_fault(self, error: RewardError, batch: Batch, trajectory: Rollouts) -> Fault:
        """Return a fault with the images of the record that the error names, or of the batch."""
        named = str(error).split(":")[0]
        rows = [i for i, record in enumerate(batch.records) if record.id == named]
        rows = rows or list(range(len(batch.records)))
        facts = batch.facts()
        return Fault(str(error), [facts[i] for i in rows], trajectory.images[rows])

    def reward_facts(self, results: Sequence[RewardResult]) -> dict[str, Any]:
        """Return the rewards' mean and std, and the share of groups whose rewards are all equal."""
        device, updates = self.policy.device, self.train.updates_per_epoch
        scores = [torch.from_numpy(result.scores)[:, None].to(device) for result in results]
        rewards = torch.cat(self.processes.gather(scores, updates)).squeeze(1).cpu().numpy()
        groups = rewards.reshape(-1, self.train.group_size)
        return {
            "reward_mean": float(rewards.mean()),
            "reward_std": float(rewards.std()),
            "groups_without_variance": float((groups.std(1) < 1e-6).mean()),
        }

    def update(self, scored: Sequence[Scored]) -> dict[str, Any]:
        """Take the epoch's optimizer steps, each on an equal part; return facts for the log."""
        share = len(scored) // self.train.updates_per_epoch
        steps = scored[0].trajectory.steps
        norms, losses, figures = [], [], []
        once: dict[str, Tensor] = {}
        for start in range(0, len(scored), share):
            terms: list[Term] = []
            for item in scored[start : start + share]:
                for row in range(steps):
                    first = start == 0 and not terms
                    term = self.algorithm.term(item, row, self.processes.main and first)
                    self.scaler.scale(term.loss / (share * steps)).backward()
                    terms.append(Term(term.loss.detach(), term.figures))
                    self.pause()
            if start == 0:
                once = self.algorithm.check(self.epoch, terms)
            losses += [term.loss for term in terms]
            figures += [term.figures for term in terms]
            norms.append(self.step(scored[start : start + share], losses[-share * steps :]))
        facts = {
            name: OVER_STEPS.get(name, torch.nanmean)(torch.stack([each[name] for each in figures]))
            for name in figures[0]
        }
        facts |= once | {
            "loss": torch.stack(losses).mean(),
            "grad_norm": torch.stack(norms).mean(),
            "map_entropy": torch.stack(
                [normalised_entropy(item.weights) for item in scored]
            ).mean(),
        }
        return self.merge_facts(facts)

    def merge_facts(self, facts: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return an epoch's facts over all processes; None for what was not measured."""
        table = self.processes.table(torch.stack(list(facts.values())))  # (processes, facts)
        merged = {
            name: MERGED.get(name, torch.nanmean)(column).item()
            for name, column in zip(facts, table.T, strict=True)
        }
        line = {name: value if math.isfinite(value) else None for name, value in merged.items()}
        if not self.allocation.uses_maps:
            line["map_entropy"] = None
        return line

    def step(self, items: Sequence[Scored], losses: Sequence[Tensor]) -> Tensor:
        """Take one optimizer step with the gradients that ``items`` left; return their norm.

        Gradients that are not finite are never trained on. Overflows of fp16 are skipped until the
        loss's scale fits; others as often as `TrainParams.skip_updates` allows.
        """
        self.processes.average(p.grad for p in self.parameters if p.grad is not None)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.train.max_grad_norm)
        self.pause()
        if norm.isfinite():
            self.scaler.step(self.optimizer)
        else:
            overflow = self.scaler.is_enabled() and self.scaler.get_scale() > 1
            if not overflow:
                if self.skipped >= self.train.skip_updates:
                    raise self.update_fault(items, losses)
                self.skipped += 1
        self.scaler.update()
        self.optimizer.zero_grad()
        self.updates += 1
        self.average.update(self.parameters, self.updates)
        return norm

    def update_fault(self, items: Sequence[Scored], losses: Sequence[Tensor]) -> Fault:
        """Return a fault with the batches whose loss is not finite, or with all."""
        steps = len(losses) // len(items)
        values = torch.stack(list(losses)).view(len(items), steps).tolist()
        bad = [i for i, row in enumerate(values) if not np.isfinite(row).all()] or range(len(items))
        rollouts = [
            fact | {"losses": [str(x) for x in values[i]]}
            for i in bad
            for fact in items[i].batch.facts()
        ]
        return Fault(
            f"epoch {self.epoch + 1}, update {self.updates + 1}: the loss or a gradient is not "
            "finite; nothing was learnt from it. A lower train.learning_rate or model.precision: "
            "bf16 may help; train.skip_updates allows some",
            rollouts,
        )

    # -- what the run leaves behind ----------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """Return CPU copies of all tensors that the next epochs depend on, and the counters.

        No random generator is among them: all noise is seeded by what it is for.
        """
        tensors: dict[str, Tensor] = {f"adapter.{i}": p for i, p in enumerate(self.parameters)}
        tensors |= {f"ema.{i}": v for i, v in enumerate(self.average.values)}
        tensors |= {f"algorithm.{name}": v for name, v in self.algorithm.tensors().items()}
        tensors |= optimizer_tensors(self.optimizer, "optimizer.")
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        facts = {
            "epoch": self.epoch,
            "updates": self.updates,
            "skipped": self.skipped,
            "base": self.policy.base,
            "scaler": self.scaler.state_dict(),
        }
        return copies, facts

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], facts: dict) -> None:
        """Go back to a `state`; `StarError` if it is of a training on another base model."""
        if facts["base"] != self.policy.base:
            raise StarError(OTHER_BASE)
        pairs = zip(self.parameters, self.average.values, strict=True)
        for i, (parameter, value) in enumerate(pairs):
            parameter.copy_(tensors[f"adapter.{i}"])
            value.copy_(tensors[f"ema.{i}"])
        for name, value in self.algorithm.tensors().items():
            value.copy_(tensors[f"algorithm.{name}"])
        restore_optimizer(self.optimizer, tensors, "optimizer.")
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(facts["scaler"])
        self.epoch, self.updates, self.skipped = facts["epoch"], facts["updates"], facts["skipped"]

    def averaged(self) -> AbstractContextManager[None]:
        """Give the policy the averaged adapter inside, and its own again afterwards."""
        return lent(self.parameters, self.average.values)

    def export(self, work: Path, output: Path) -> None:
        """Write the EMA adapter, the log, the sample grids and the maps into ``output``."""
        output.mkdir(parents=True, exist_ok=True)
        for folder in ("adapter", "samples", "maps"):
            remove(output / folder)  # of an earlier training
        with self.averaged():
            self.policy.save_adapter(output / "adapter")
        shutil.copy(work / "log.jsonl", output / "log.jsonl")
        for folder in ("samples", "maps"):
            (output / folder).mkdir()
            if (work / folder).exists():
                shutil.copytree(work / folder, output / folder, dirs_exist_ok=True)


def overlaps(device: torch.device) -> bool:
    """Return whether images are scored while the next batch is drawn.

    With a GPU, the CPU scores meanwhile. On a CPU both compete for the same cores, which costs more
    than scoring alone.
    """
    return device.type != "cpu"
