"""Sampling pictures: plain ODE sampling for evaluation, and rollouts whose stochastic steps are kept for training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from star import sde
from star.allocation import relevance_map
from star.attention import CoreKeys, record_core_attention
from star.objective import patch_mean
from star.params import AllocationParams, RolloutParams
from star.policy import Conditioning, Schedule, SD3Policy


@dataclass(frozen=True)
class Trajectory:
    """The stochastic steps of a batch of rollouts. ``B`` rollouts, ``T`` trained steps, ``P`` locations.

    latents: float32 (T + 1, B, channels, height, width), exactly what the model consumed and drew.
    log_prob: float32 (T, B, P), patch means at sampling time.
    relevance: float32 (B, T, P), or None where the allocation needs no attention.
    shared: rollouts side by side with one prompt and one initial noise. They are equal up to the first stochastic step,
        so up to there the model runs once for all of them, in the rollout as in the update.
    """

    conditioning: Conditioning
    latents: Tensor
    log_prob: Tensor
    relevance: Tensor | None
    shared: int
    pictures: np.ndarray  # uint8 (B, height, width, 3)


@torch.no_grad()
def sample_pictures(policy: SD3Policy, prompts: Sequence[str], seeds: Sequence[int], steps: int) -> np.ndarray:
    """Deterministic pictures, uint8 (batch, height, width, 3): ODE steps from the noise of each seed."""
    schedule, conditioning = policy.schedule(steps), policy.encode(prompts)
    x = policy.noise(seeds)
    for t in range(steps):
        velocity = policy.velocity(x, schedule.timesteps[t], conditioning)
        x = sde.ode_step(x, velocity, schedule.sigmas[t], schedule.sigmas[t + 1])
    return policy.decode(x)


@torch.no_grad()
def trace_relevance(
    policy: SD3Policy, prompts: Sequence[str], seeds: Sequence[int], steps: int, core: CoreKeys, blocks: str | list[int]
) -> tuple[Tensor, np.ndarray]:
    """Relevance maps at every ODE step, float32 (batch, steps, locations), and the pictures: for looking at."""
    schedule, conditioning = policy.schedule(steps), policy.encode(prompts)
    x, maps = policy.noise(seeds), []
    for t in range(steps):
        with record_core_attention(policy.transformer, core, blocks) as recorder:
            velocity = policy.velocity(x, schedule.timesteps[t], conditioning)
        maps.append(relevance_map(recorder.mass, core.weight))
        x = sde.ode_step(x, velocity, schedule.sigmas[t], schedule.sigmas[t + 1])
    return torch.stack(maps, dim=1), policy.decode(x)


def transition_at(
    policy: SD3Policy,
    x: Tensor,
    t: int,
    schedule: Schedule,
    conditioning: Conditioning,
    noise_level: float,
    shared: int,
) -> sde.Transition:
    """The policy's Gaussian step from ``x`` at step ``t``: the one function that rollout and update share.

    Runs of ``shared`` neighbours in ``x`` are equal, and go through the model as one.
    """
    velocity = policy.velocity(x[::shared], schedule.timesteps[t], conditioning[::shared])
    sigmas = schedule.sigmas
    return sde.flow_sde_transition(
        x, velocity.repeat_interleave(shared, dim=0), sigmas[t], sigmas[t + 1], noise_level, sigmas[1]
    )


@torch.no_grad()
def roll_out(
    policy: SD3Policy,
    prompts: Sequence[str],
    start_seeds: Sequence[int],
    step_seeds: Sequence[int],
    rollout: RolloutParams,
    core: CoreKeys | None,
    allocation: AllocationParams,
) -> Trajectory:
    """Sample one batch of rollouts.

    Args:
        start_seeds: seed of each rollout's initial noise; equal seeds share it.
        step_seeds: seed of each rollout's noise injections, distinct.
        core: core tokens of each prompt; None leaves the attention unread.
    """
    schedule, conditioning = policy.schedule(rollout.steps), policy.encode(prompts)
    first, end = rollout.window
    generators = [torch.Generator().manual_seed(seed) for seed in step_seeds]
    shared = _shared(prompts, start_seeds)
    x = policy.noise(start_seeds)
    latents, log_probs, relevances = [], [], []
    for t in range(rollout.steps):
        alike = shared if t <= first else 1
        if not first <= t < end:
            velocity = policy.velocity(x[::alike], schedule.timesteps[t], conditioning[::alike])
            x = sde.ode_step(x, velocity.repeat_interleave(alike, dim=0), schedule.sigmas[t], schedule.sigmas[t + 1])
            continue
        if core is None:
            transition = transition_at(policy, x, t, schedule, conditioning, rollout.noise_level, alike)
        else:
            with record_core_attention(policy.transformer, core[::alike], allocation.blocks) as recorder:
                transition = transition_at(policy, x, t, schedule, conditioning, rollout.noise_level, alike)
            relevances.append(relevance_map(recorder.mass, core.weight[::alike]).repeat_interleave(alike, dim=0))
        latents.append(x)
        noise = torch.stack([torch.randn(policy.latent_shape, generator=g) for g in generators]).to(x.device)
        x = sde.sample_transition(transition, noise)
        log_probs.append(patch_mean(sde.log_prob(x, transition), policy.patch))
        if t == end - 1:
            latents.append(x)
    return Trajectory(
        conditioning,
        torch.stack(latents),
        torch.stack(log_probs),
        torch.stack(relevances, dim=1) if relevances else None,
        shared,
        policy.decode(x),
    )


def _shared(prompts: Sequence[str], start_seeds: Sequence[int]) -> int:
    """The largest length that cuts the batch into runs with one prompt and one initial noise."""
    return math.gcd(*(len(list(run)) for _, run in groupby(zip(prompts, start_seeds, strict=True))))
