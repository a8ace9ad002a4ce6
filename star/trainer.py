"""Training: each epoch samples rollouts, scores them, weighs the advantages over space and time, and updates the
adapter.

Flow-GRPO (arXiv 2505.05470) with STAR's allocation (arXiv 2606.17979). Where we part from Flow-GRPO's published code:
the batches of an update are the batches of the rollout (same geometry, so the first ratio is exactly 1); all randomness
is seeded by what it is for (see `star.seeds`), so resuming needs no generator states; and every per-task setting is
data.
"""

import dataclasses
import itertools
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from star.allocation import allocation_weights, controlled, normalised_entropy
from star.attention import CoreKeys
from star.checkpoint import load_state, optimizer_tensors, restore_optimizer, save_state
from star.checks import check_folders, find_all_models
from star.core import clause_records, core_token_weights, scattered
from star.ema import Average
from star.epoch import check_processes, window_start
from star.errors import StarError
from star.fit import check_core
from star.objective import SURROGATES, Surrogate, group_advantages, kl_penalty, patch_mean
from star.params import AllocationParams, Params
from star.policy import SD3Policy, base_fingerprint, load_policy
from star.processes import ALONE, Processes
from star.records import PromptRecord
from star.rewards.base import Reward, RewardResult
from star.rewards.factory import build_reward
from star.rollout import Trajectory, roll_out
from star.samples import SHEET_PROMPTS, draw_samples
from star.sde import Transition, log_ratio
from star.seeds import seed_of

# How an epoch's facts of several processes become one; others are averaged.
MERGED = {"ratio_min": torch.min, "ratio_max": torch.max, "first_ratio_error": torch.max}


@dataclass(frozen=True)
class Batch:
    """One forward pass of rollouts: records repeated group by group, and the seeds of their noise."""

    records: list[PromptRecord]
    start_seeds: list[int]
    step_seeds: list[int]


@dataclass(frozen=True)
class Scored:
    """A batch after sampling and scoring. advantages: (B, K); weights: allocation maps (B, T, K, P)."""

    trajectory: Trajectory
    advantages: Tensor
    weights: Tensor


class Trainer:
    """One training run. `run` resumes from ``work`` if it holds a state, and fills ``output`` at the end."""

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
        self.parameters = policy.add_adapter(seed_of(params.seed, "adapter"))
        policy.compile()
        self.optimizer = torch.optim.AdamW(self.parameters, lr=train.learning_rate, weight_decay=train.weight_decay)
        self.average = Average(self.parameters, train.ema_decay, train.ema_every)
        self.epoch = self.updates = 0
        self.allocate(allocation)

    def allocate(self, allocation: AllocationParams) -> None:
        """Spread advantages by ``allocation`` from now on."""
        self.allocation = allocation
        self.uses_maps = allocation.uses_maps
        flat = allocation.source != "uniform" and not self.uses_maps
        self.compute_surrogate = SURROGATES["scalar" if flat else allocation.objective]
        self._core: dict[tuple[str, bool], Tensor] = {}

    # -- one epoch: sample, score, weigh, update ----------------------------------------------------------------------

    def train_epoch(self) -> dict:
        """Run one epoch and return its log line."""
        seconds = {"rollout": 0.0, "reward": 0.0, "update": 0.0}
        updates = self.params.train.updates_per_epoch
        planned = list(enumerate(plan_epoch(self.records, self.params, self.epoch)))
        numbers, batches = zip(*self.processes.own(planned, updates), strict=True)
        trajectories, pending = self.draw(batches, seconds)
        clock = time.perf_counter()
        results = [scoring.result() for scoring in pending]
        seconds["reward"] += time.perf_counter() - clock
        clock = time.perf_counter()
        scored = self.weigh(trajectories, results, numbers)
        scores = [torch.from_numpy(result.scores)[:, None].to(self.policy.device) for result in results]
        rewards = torch.cat(self.processes.gather(scores, updates)).squeeze(1).cpu().numpy()
        line = {"epoch": self.epoch + 1, **reward_facts(rewards, self.params.train.group_size)}
        line |= self.update(scored)
        seconds["update"] = time.perf_counter() - clock
        self.epoch += 1
        images = self.params.images_per_epoch
        line |= {"images": images * self.epoch, "updates": self.updates, "seconds": seconds}
        return line | {"images_per_s": images / sum(seconds.values())}

    def draw(
        self, batches: Sequence[Batch], seconds: dict[str, float]
    ) -> tuple[list[Trajectory], list[Future[RewardResult]]]:
        """Sample batches and hand them to the reward, each at once or all after the last one (see `overlaps`).

        Args:
            seconds: what it takes is added to ``rollout`` and, as far as the reward did not return at once, ``reward``.
        """
        trajectories: list[Trajectory] = []
        pending: list[Future[RewardResult]] = []
        for i, batch in enumerate(batches):
            clock = time.perf_counter()
            trajectories.append(self.sample(batch))
            submitted = time.perf_counter()
            if overlaps(self.policy.device) or i == len(batches) - 1:
                for late in range(len(pending), i + 1):
                    pending.append(self.reward.submit(trajectories[late].pictures, batches[late].records))
            seconds["rollout"] += submitted - clock
            seconds["reward"] += time.perf_counter() - submitted
        return trajectories, pending

    def sample(self, batch: Batch) -> Trajectory:
        return roll_out(
            self.policy,
            [record.prompt for record in batch.records],
            batch.start_seeds,
            batch.step_seeds,
            self.params.rollout,
            window_start(self.params.rollout, self.epoch),
            self.core_keys(batch.records, self.allocation.clause_wise) if self.uses_maps else None,
            self.allocation,
        )

    def weigh(
        self, trajectories: Sequence[Trajectory], results: Sequence[RewardResult], numbers: Sequence[int]
    ) -> list[Scored]:
        """Advantages of this process's rollouts among all of the epoch, and the maps that spread them.

        Args:
            numbers: of the batches, in the epoch's plan.
        """
        train = self.params.train
        scored = []
        for number, trajectory, advantage in zip(numbers, trajectories, self.advantages(results), strict=True):
            if trajectory.relevance is None:
                steps, rollouts = trajectory.means.shape[:2]
                locations = patch_mean(trajectory.means[0], self.policy.patch).shape[1]
                weights = advantage.new_ones(rollouts, steps, 1, locations)
            else:
                seed = seed_of(self.params.seed, "control", self.epoch, number)
                relevance = controlled(trajectory.relevance, self.allocation.source, train.group_size, seed)
                weights = allocation_weights(relevance, self.allocation)
                advantage = advantage[:, : weights.shape[2]]  # the batch may lack the epoch's longest prompt
                if advantage.shape != weights[:, 0, :, 0].shape:  # it would be broadcast, and counted more than once
                    raise StarError(
                        f"allocation.clause_wise: the reward {self.reward.name} gives clauses no shares of its own; "
                        "set it to false"
                    )
            scored.append(Scored(trajectory, advantage, weights))
        return scored

    def advantages(self, results: Sequence[RewardResult]) -> list[Tensor]:
        """Of each of this process's batches, (B, K); groups and spread are those of the whole epoch."""
        train = self.params.train
        clause_wise = self.allocation.clause_wise and self.uses_maps
        rows = _padded([share for result in results for share in _clause_shares(result, clause_wise)])
        parts = rows.to(self.policy.device).split([len(result.scores) for result in results])
        everywhere = self.processes.gather(parts, train.updates_per_epoch)
        advantages = group_advantages(torch.cat(everywhere), train.group_size, train.advantage_clip)
        by_batch = advantages.split([len(part) for part in everywhere])
        return self.processes.own(by_batch, train.updates_per_epoch)

    def update(self, scored: Sequence[Scored]) -> dict:
        """The epoch's optimizer steps, each over its share of the batches; returns the log's update facts."""
        train = self.params.train
        share = len(scored) // train.updates_per_epoch
        steps = len(scored[0].trajectory.means)
        ratios, clipped, norms = [], [], []
        penalties: list[Tensor] = []
        for start in range(0, len(scored), share):
            for item in scored[start : start + share]:
                for row in range(steps):
                    surrogate, transition = self.surrogate(item, row)
                    loss = surrogate.loss
                    # Without a penalty the KL is still logged, of the epoch's first step: it costs a forward pass.
                    logged = self.processes.main and not penalties
                    if train.kl_form != "none" and (train.kl_beta > 0 or logged):
                        penalty = self.penalty(item, row, transition)
                        penalties.append(penalty.detach())
                        loss = loss + train.kl_beta * penalty
                    (loss / (share * steps)).backward()
                    ratios.append(surrogate.ratio.flatten())
                    clipped.append(surrogate.clipped)
            self.processes.average(p.grad for p in self.parameters if p.grad is not None)
            norms.append(torch.nn.utils.clip_grad_norm_(self.parameters, train.max_grad_norm))
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.updates += 1
            self.average.update(self.parameters, self.updates)
        every = torch.cat(ratios)
        fresh = torch.cat(ratios[: share * steps])  # before the first optimizer step: exactly 1
        facts = {
            "ratio_mean": every.mean(),
            "ratio_min": every.min(),
            "ratio_max": every.max(),
            "first_ratio_error": (fresh - 1).abs().max(),
            "clip_fraction": torch.stack(clipped).mean(),
            "kl": torch.stack(penalties).mean() if penalties else every.new_tensor(math.nan),
            "grad_norm": torch.stack(norms).mean(),
            "map_entropy": torch.stack([normalised_entropy(item.weights) for item in scored]).mean(),
        }
        table = self.processes.table(torch.stack(list(facts.values())))  # (processes, facts)
        line = {
            name: MERGED.get(name, torch.nanmean)(column).item() for name, column in zip(facts, table.T, strict=True)
        }
        unknown = {"kl": math.isnan(line["kl"]), "map_entropy": not self.uses_maps}
        return {name: None if unknown.get(name) else value for name, value in line.items()}

    def surrogate(self, item: Scored, row: int) -> tuple[Surrogate, Transition]:
        """The clipped surrogate of one trained step of one batch, and the current policy's transition."""
        train, trajectory = self.params.train, item.trajectory
        transition = self.transition(item, row)
        elements = log_ratio(trajectory.latents[row + 1], transition, trajectory.means[row], train.normalise_ratio)
        locations = patch_mean(elements, self.policy.patch)
        return self.compute_surrogate(locations, item.advantages, item.weights[:, row], train.clip_range), transition

    def penalty(self, item: Scored, row: int, transition: Transition) -> Tensor:
        """KL of one step of one batch from the base model's, by a second forward pass without the adapter."""
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
        return CoreKeys.from_weights(_padded([self._core[record.id, clause_wise] for record in records]))

    def _core_weights(self, record: PromptRecord, clause_wise: bool) -> Tensor:
        """Weight of each text position for each clause (or for the whole): float32 (K, text tokens)."""
        weights = []
        for part in clause_records(record) if clause_wise else [record]:
            policy, kinds = self.policy, self.params.core.weights
            tokens = core_token_weights(part, policy.tokenizers, policy.text_lengths, kinds, self.allocation.encoders)
            weights.append(tokens.weights)
        stacked = np.stack(weights)
        if self.allocation.source == "random_tokens":
            stacked = scattered(stacked, seed_of(self.params.seed, "random_tokens", record.id))
        return torch.from_numpy(stacked).to(self.policy.device)

    # -- what the run leaves behind -----------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        tensors: dict[str, Tensor] = {f"adapter.{i}": p for i, p in enumerate(self.parameters)}
        tensors |= {f"ema.{i}": v for i, v in enumerate(self.average.values)}
        tensors |= optimizer_tensors(self.optimizer, "optimizer.")
        base = base_fingerprint(self.policy.transformer)
        save_state(path, tensors, {"epoch": self.epoch, "updates": self.updates, "base": base})

    @torch.no_grad()
    def restore(self, path: Path) -> None:
        """Go on from a state that `save` has written.

        Raises:
            StarError: an unreadable state, or that of a training on another base model.
        """
        tensors, facts = load_state(path)
        if facts["base"] != base_fingerprint(self.policy.transformer):
            raise StarError(f"{path}: the state of a training on another base model; delete it to start over")
        for i, (parameter, value) in enumerate(zip(self.parameters, self.average.values, strict=True)):
            parameter.copy_(tensors[f"adapter.{i}"])
            value.copy_(tensors[f"ema.{i}"])
        restore_optimizer(self.optimizer, tensors, "optimizer.")
        self.epoch, self.updates = facts["epoch"], facts["updates"]

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
    """Whether pictures are scored while the next batch is drawn.

    Beside a GPU, the CPU scores meanwhile. On a CPU both would wait for the same cores: two threads of one product, of
    which one is slowed, cost more than the scoring.
    """
    return device.type != "cpu"


def records_ahead(records: Sequence[PromptRecord], params: Params) -> list[PromptRecord]:
    """The records that a training will draw, each once: those of its epochs and those of its sample sheets."""
    ahead = [record for epoch in range(params.train.epochs) for record in epoch_prompts(records, params, epoch)]
    return list({record.id: record for record in [*ahead, *records[:SHEET_PROMPTS]]}.values())


def epoch_prompts(records: Sequence[PromptRecord], params: Params, epoch: int) -> list[PromptRecord]:
    """The prompts of an epoch: the set is taken in a new seeded order at each pass."""
    count = params.train.prompts_per_epoch
    taken = []
    for number, group in itertools.groupby(range(epoch * count, (epoch + 1) * count), lambda i: i // len(records)):
        order = np.random.default_rng(seed_of(params.seed, "order", number)).permutation(len(records))
        taken += [records[order[i % len(records)]] for i in group]
    return taken


def plan_epoch(records: Sequence[PromptRecord], params: Params, epoch: int) -> list[Batch]:
    """The prompts and seeds of an epoch, cut into rollout batches; rollouts of a group lie side by side."""
    train, seed = params.train, params.seed
    entries = []
    for slot, record in enumerate(epoch_prompts(records, params, epoch)):
        group = epoch * train.prompts_per_epoch + slot
        for rollout in range(train.group_size):
            start = ("start", group) if params.rollout.same_latent else ("start", group, rollout)
            entries.append((record, seed_of(seed, *start), seed_of(seed, "steps", group, rollout)))
    size = params.rollout.batch
    return [Batch(*map(list, zip(*entries[i : i + size], strict=True))) for i in range(0, len(entries), size)]


def _clause_shares(result: RewardResult, clause_wise: bool) -> list[Tensor]:
    """Shares of each picture's score, (K,): of its clauses, or the score alone."""
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


def train(params: Params, task: str, method: str, records: Sequence[PromptRecord], work: Path, output: Path) -> None:
    """Train ``method`` on ``task``, resuming from ``work``; ``output`` is filled only when the training is complete.

    Raises:
        StarError: an unknown method, records of another task, a folder that cannot be written, an unusable model or
            prompt (all of these before a model is opened), a reward that fails, or a non-finite loss.
    """
    allocation = params.method(method)
    wrong = next((record for record in records if record.task != task), None)
    if wrong is not None:
        raise StarError(f"record {wrong.id} belongs to task {wrong.task}, not {task}; give the task's own file")
    check_folders(params, work, output)
    accelerator = Accelerator(
        log_with="wandb" if params.train.tracker == "wandb" else None, project_dir=str(work), cpu=not _has_gpu()
    )
    processes = Processes.of(accelerator)
    check_processes(params, processes.count)
    ahead = records_ahead(records, params)
    check_core(params, find_all_models(params, [task]), allocation, ahead, accelerator.print)
    reward = build_reward(task, params.rewards)
    try:
        policy = load_policy(params.model, accelerator.device)
        accelerator.print(f"{task} {method}: {processes}, attention kernel {policy.attention_kernel}", flush=True)
        trainer = Trainer(params, allocation, records, reward, policy, processes)
        if params.train.tracker == "wandb":
            accelerator.init_trackers(
                "star", config=dataclasses.asdict(params), init_kwargs={"wandb": {"name": f"{task}-{method}"}}
            )

        def log(line: dict) -> None:
            flat = {key: value for key, value in line.items() if isinstance(value, (int, float))}
            accelerator.log(flat, step=line["epoch"])

        policy.prepare_prompts(processes.own(list(dict.fromkeys(record.prompt for record in ahead)), 1))
        accelerator.wait_for_everyone()
        title = f"{task} {method}"
        run_epochs(trainer, work, title, params.train.sample_every, lambda: _draw(trainer, work), log)
        if processes.main:
            trainer.export(work, output)
            shutil.rmtree(work)
        accelerator.end_training()
    finally:
        reward.close()


def run_epochs(
    trainer: Trainer,
    work: Path,
    title: str,
    look_every: int,
    look: Callable[[], None],
    log: Callable[[dict], None] = lambda line: None,
) -> None:
    """Train to the last epoch, from the state in ``work`` if there is one; ``work/log.jsonl`` gets a line an epoch.

    Of several processes the main one writes, looks and logs; all read the state.

    Args:
        look: called before the first epoch, every ``look_every`` epochs and after the last one.
        log: called with each new line.

    Raises:
        StarError: a loss or gradient that is not finite.
    """
    settings, state, lines = trainer.params.train, work / "state.safetensors", work / "log.jsonl"
    main = trainer.processes.main
    if state.exists():
        trainer.restore(state)
    if main:
        work.mkdir(parents=True, exist_ok=True)
        kept = lines.read_text(encoding="utf-8").splitlines()[: trainer.epoch] if lines.exists() else []
        lines.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        if trainer.epoch == 0:
            look()
    bar = tqdm(total=settings.epochs, initial=trainer.epoch, desc=title, unit="epoch", mininterval=1, disable=not main)
    while trainer.epoch < settings.epochs:
        line = trainer.train_epoch()
        if not np.isfinite([line["reward_mean"], line["grad_norm"], line["ratio_mean"]]).all():
            raise StarError(
                f"{title}: epoch {line['epoch']}: the loss or a gradient is not finite; state kept in {work}"
            )
        if not main:
            continue
        with open(lines, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        log(line)
        bar.set_postfix(reward=f"{line['reward_mean']:.3f}", images_per_s=f"{line['images_per_s']:.0f}")
        bar.update()
        if trainer.epoch % look_every == 0 or trainer.epoch == settings.epochs:
            look()
        if trainer.epoch % settings.save_every == 0 or trainer.epoch == settings.epochs:
            trainer.save(state)
    bar.close()


def _draw(trainer: Trainer, folder: Path) -> None:
    records = trainer.records[:SHEET_PROMPTS]
    core = trainer.core_keys(records, clause_wise=False) if trainer.uses_maps else None
    draw_samples(
        trainer.policy, trainer.reward, records, core, trainer.params, trainer.allocation, trainer.epoch, folder
    )


def _has_gpu() -> bool:
    return torch.cuda.is_available()
