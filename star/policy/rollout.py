"""Sampling images: plain ODE sampling for evaluation, and rollouts whose stochastic steps are
kept for training."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from star.config.params import AllocationParams, RolloutParams
from star.method import sde
from star.method.allocation import relevance_maps
from star.method.attention import CoreKeys, record_core_attention
from star.method.objective import patch_mean
from star.policy.conditioning import Conditioning
from star.policy.sd3 import Schedule, SD3Policy
from star.system.errors import StarError


class NotFinite(StarError):
    """Latents of which no image can be made; the message names a prompt."""


@dataclass(frozen=True)
class Trajectory:
    """The stochastic steps of a batch of rollouts. ``B`` rollouts, ``T`` trained steps, ``K``
    clauses, ``P`` locations.

    latents: float32 (T + 1, B, channels, height, width), exactly what the model consumed and drew.
    means: float32 (T, B, channels, height, width), of the steps as they were drawn.
    relevance: float32 (B, T, K, P), or None where the allocation needs no maps.
    first: the schedule's step of the first trained one.
    shared: rollouts side by side with one prompt and one initial noise. They are equal up to the
        first stochastic step, so up to there the model runs once for all of them, in the rollout as
        in the update.
    """

    conditioning: Conditioning
    latents: Tensor
    means: Tensor
    relevance: Tensor | None
    first: int
    shared: int
    images: np.ndarray  # uint8 (B, height, width, 3)

    def transition(
        self, policy: SD3Policy, row: int, schedule: Schedule, rollout: RolloutParams
    ) -> sde.Transition:
        """The current policy's Gaussian step from the latents of trained step ``row``."""
        alike = self.shared if row == 0 else 1
        return transition_at(
            policy, self.latents[row], self.first + row, schedule, self.conditioning, rollout, alike
        )


@torch.no_grad()
def sample_images(
    policy: SD3Policy, prompts: Sequence[str], seeds: Sequence[int], steps: int
) -> np.ndarray:
    """Deterministic images, uint8 (batch, height, width, 3): ODE steps from the noise of each
    seed."""
    schedule, conditioning = policy.schedule(steps), policy.encode(prompts)
    x = policy.noise(seeds)
    for t in range(steps):
        velocity = policy.velocity(x, schedule.timesteps[t], conditioning)
        x = sde.ode_step(x, velocity, schedule.sigmas[t], schedule.sigmas[t + 1])
    return decoded(policy, x, prompts)


def decoded(policy: SD3Policy, x: Tensor, prompts: Sequence[str]) -> np.ndarray:
    """The images of finished latents, as `SD3Policy.decode`.

    Raises:
        NotFinite: a latent that would decode to a black image and be scored as one.
    """
    bad = (~x.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
    if bad:
        raise NotFinite(
            f"{len(bad)} of {len(x)} images are not finite, the first of the prompt {prompts[bad[0]]!r}; "
            f'model.precision is {policy.model.precision}: bf16 and "no" have a wider range than fp16'
        )
    return policy.decode(x)


@torch.no_grad()
def trace_relevance(
    policy: SD3Policy,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    core: CoreKeys,
    allocation: AllocationParams,
) -> tuple[Tensor, np.ndarray]:
    """Relevance maps at every ODE step, float32 (batch, steps, K, locations), and the images: for
    looking at."""
    schedule, conditioning = policy.schedule(steps), policy.encode(prompts)
    x, masses = policy.noise(seeds), []
    for t in range(steps):
        with watched(policy, x, schedule.timesteps[t], conditioning, core, allocation) as seen:
            velocity = policy.velocity(x, schedule.timesteps[t], conditioning)
        masses.append(seen())
        x = sde.ode_step(x, velocity, schedule.sigmas[t], schedule.sigmas[t + 1])
    return relevance_of(masses, core, allocation), decoded(policy, x, prompts)


def relevance_of(masses: Sequence[Tensor], core: CoreKeys, allocation: AllocationParams) -> Tensor:
    """Relevance maps (B, T, K, P) of the masses of T steps, each (B, P, C)."""
    mass, how = torch.stack(list(masses), dim=1), allocation
    return relevance_maps(mass, core.weight, how.normalise_tokens, how.temporal, how.smoothing)


def transition_at(
    policy: SD3Policy,
    x: Tensor,
    t: int,
    schedule: Schedule,
    conditioning: Conditioning,
    rollout: RolloutParams,
    alike: int,
) -> sde.Transition:
    """The policy's Gaussian step from ``x`` at step ``t``: the one function that rollout and update
    share.

    Runs of ``alike`` neighbours in ``x`` are equal, and go through the model as one.
    """
    velocity = policy.velocity(x[::alike], schedule.timesteps[t], conditioning[::alike])
    velocity, sigmas = velocity.repeat_interleave(alike, dim=0), schedule.sigmas
    return sde.SAMPLERS[rollout.sampler](
        x, velocity, sigmas[t], sigmas[t + 1], rollout.noise_level, sigmas[1]
    )


@torch.no_grad()
def roll_out(
    policy: SD3Policy,
    prompts: Sequence[str],
    start_seeds: Sequence[int],
    step_seeds: Sequence[int],
    rollout: RolloutParams,
    first: int,
    core: CoreKeys | None,
    allocation: AllocationParams,
) -> Trajectory:
    """Sample one batch of rollouts.

    Args:
        start_seeds: seed of each rollout's initial noise; equal seeds share it.
        step_seeds: seed of each rollout's noise injections, distinct.
        first: the first stochastic step; the window keeps the length it has in ``rollout``.
        core: core tokens of each prompt; None where the allocation needs no maps.
    """
    schedule, conditioning = policy.schedule(rollout.steps), policy.encode(prompts)
    end = first + rollout.window[1] - rollout.window[0]
    generators = [torch.Generator().manual_seed(seed) for seed in step_seeds]
    shared = _shared(prompts, start_seeds)
    x = policy.noise(start_seeds)
    latents, means, masses = [], [], []
    for t in range(rollout.steps):
        alike = shared if t <= first else 1
        if not first <= t < end:
            velocity = policy.velocity(x[::alike], schedule.timesteps[t], conditioning[::alike])
            x = sde.ode_step(
                x,
                velocity.repeat_interleave(alike, dim=0),
                schedule.sigmas[t],
                schedule.sigmas[t + 1],
            )
            continue
        if core is None:
            transition = transition_at(policy, x, t, schedule, conditioning, rollout, alike)
        else:
            seen_by = (x[::alike], schedule.timesteps[t], conditioning[::alike], core[::alike])
            with watched(policy, *seen_by, allocation) as seen:
                transition = transition_at(policy, x, t, schedule, conditioning, rollout, alike)
            masses.append(seen().repeat_interleave(alike, dim=0))
        latents.append(x)
        means.append(transition.mean)
        noise = torch.stack([torch.randn(policy.latent_shape, generator=g) for g in generators]).to(
            x.device
        )
        x = sde.sample_transition(transition, noise)
        if t == end - 1:
            latents.append(x)
    return Trajectory(
        conditioning,
        torch.stack(latents),
        torch.stack(means),
        None if core is None else relevance_of(masses, core, allocation),
        first,
        shared,
        decoded(policy, x, prompts),
    )


@contextmanager
def watched(
    policy: SD3Policy,
    x: Tensor,
    timestep: float,
    conditioning: Conditioning,
    core: CoreKeys,
    allocation: AllocationParams,
) -> Iterator[Callable[[], Tensor]]:
    """Watch one forward pass; what is yielded gives the mass on each core token afterwards: float32
    (batch, locations, core tokens).

    The source ``guidance`` looks at the model's outputs and not at its attention: ``|v_cond -
    v_uncond|^2`` stands in the place of every token's mass, at the price of two forward passes
    more; every clause has the same map then."""
    if allocation.source == "guidance":
        difference = policy.guidance_direction(x, timestep, conditioning)
        direction = patch_mean(difference.square(), policy.patch)
        yield lambda: direction[:, :, None].expand(-1, -1, core.weight.shape[2])
        return
    with record_core_attention(policy.transformer, core, allocation.blocks) as recorder:
        yield lambda: recorder.mass


def _shared(prompts: Sequence[str], start_seeds: Sequence[int]) -> int:
    """The largest length that cuts the batch into runs with one prompt and one initial noise."""
    return math.gcd(*(len(list(run)) for _, run in groupby(zip(prompts, start_seeds, strict=True))))
