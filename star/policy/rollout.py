"""Samples images: by ODE steps for evaluation, as rollouts with stochastic steps for training."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from star.config.params import AllocationParams, RolloutParams
from star.method.allocation import relevance_maps
from star.method.attention import CoreKeys, record_core_attention
from star.method.objective import patch_mean
from star.method.sde import LEAST_STD, SAMPLERS, Transition, dpm_step, ode_step
from star.policy.conditioning import Conditioning
from star.policy.sd3 import NotFinite, SD3Policy
from star.system.errors import StarError


@torch.no_grad()
def sample_images(
    policy: SD3Policy, prompts: Sequence[str], seeds: Sequence[int], steps: int
) -> np.ndarray:
    """Return images by ODE steps from the noise of each seed, uint8 (batch, height, width, 3)."""
    return decoded(policy, sample_latents(policy, policy.encode(prompts), seeds, steps), prompts)


@torch.no_grad()
def sample_latents(
    policy: SD3Policy,
    conditioning: Conditioning,
    seeds: Sequence[int],
    steps: int,
    solver: str = "euler",
) -> Tensor:
    """Return clean latents by ODE steps from the noise of each seed.

    Args:
        solver: euler, or dpm2m for DPM-Solver++(2M).
    """
    schedule, x, clean = policy.schedule(steps), policy.noise(seeds), None
    for t in range(steps):
        velocity = policy.velocity(x, schedule.timesteps[t], conditioning)
        if solver == "dpm2m":
            x, clean = dpm_step(x, velocity, schedule.sigmas, t, clean)
        else:
            x = ode_step(x, velocity, schedule.sigmas[t], schedule.sigmas[t + 1])
    return x


def decoded(policy: SD3Policy, x: Tensor, prompts: Sequence[str]) -> np.ndarray:
    """Return the images of finished latents, as `SD3Policy.decode`; an error names a prompt."""
    try:
        return policy.decode(x)
    except NotFinite as error:
        raise NotFinite(
            error.rows,
            f"{len(error.rows)} of {len(x)} images are not finite, the first of the prompt "
            f"{prompts[error.rows[0]]!r}; model.precision is {policy.model.precision}: "
            'bf16 and "no" have a wider range than fp16',
        ) from error


@torch.no_grad()
def trace_relevance(
    policy: SD3Policy,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    core: CoreKeys,
    allocation: AllocationParams,
) -> tuple[Tensor, np.ndarray]:
    """Return relevance maps at every ODE step, float32 (batch, steps, K, P), and the images."""
    schedule, conditioning = policy.schedule(steps), policy.encode(prompts)
    x, masses = policy.noise(seeds), []
    for t in range(steps):
        with watched(policy, x, schedule.timesteps[t], conditioning, core, allocation) as seen:
            velocity = policy.velocity(x, schedule.timesteps[t], conditioning)
        masses.append(seen())
        x = ode_step(x, velocity, schedule.sigmas[t], schedule.sigmas[t + 1])
    return relevance_of(masses, core, allocation), decoded(policy, x, prompts)


def relevance_of(masses: Sequence[Tensor], core: CoreKeys, allocation: AllocationParams) -> Tensor:
    """Return the relevance maps (B, T, K, P) of the masses of T steps, each (B, P, C)."""
    return relevance_maps(
        torch.stack(list(masses), dim=1),
        core.weight,
        allocation.normalise_tokens,
        allocation.temporal,
        allocation.smoothing,
    )


@contextmanager
def watched(
    policy: SD3Policy,
    x: Tensor,
    timestep: float | Tensor,
    conditioning: Conditioning,
    core: CoreKeys,
    allocation: AllocationParams,
) -> Iterator[Callable[[], Tensor]]:
    """Watch one forward pass; the yielded function then returns the mass, float32 (B, P, C).

    The source ``guidance`` looks at the model's outputs, not at its attention: ``|v_cond -
    v_uncond|^2`` stands in for every token's mass, so every clause has the same map. It costs two
    more forward passes.
    """
    if allocation.source == "guidance":
        with torch.no_grad():
            difference = policy.guidance_direction(x, timestep, conditioning)
        direction = patch_mean(difference.square(), policy.patch)
        yield lambda: direction[:, :, None].expand(-1, -1, core.weight.shape[2])
        return
    with record_core_attention(policy.transformer, core, allocation.blocks) as recorder:
        yield lambda: recorder.mass


@dataclass(frozen=True)
class Trajectory:
    """The stochastic steps of a batch: ``B`` rollouts, ``T`` trained steps, ``K`` clauses.

    latents: float32 (T + 1, B, channels, height, width), exactly what the model consumed and drew.
    means: float32 (T, B, channels, height, width), of the steps as they were drawn.
    relevance: float32 (B, T, K, P), P locations; None where the allocation needs no maps.
    first: the schedule's step of the first trained one.
    shared: number of neighbouring rollouts with the same prompt and initial noise. They are equal
        before the first stochastic step, so until then the model runs once for them.
    images: uint8 (B, height, width, 3).
    graphs: the trained steps with the graph of their forward pass, T; none if they were not kept.
    """

    conditioning: Conditioning
    latents: Tensor
    means: Tensor
    relevance: Tensor | None
    first: int
    shared: int
    images: np.ndarray
    graphs: Sequence[Transition] = ()

    @property
    def steps(self) -> int:
        return len(self.means)


class Roller:
    """Draws rollouts of a policy, and takes their stochastic steps again in the update."""

    def __init__(self, policy: SD3Policy, settings: RolloutParams) -> None:
        self.policy, self.settings = policy, settings
        self.schedule = policy.schedule(settings.steps)
        self.sampler = SAMPLERS[settings.sampler](self.schedule.sigmas, settings.noise_level)

    def transition(self, x: Tensor, t: int, conditioning: Conditioning, alike: int) -> Transition:
        """Return the policy's step ``t`` from ``x``: the one function of rollout and update.

        Runs of ``alike`` neighbours in ``x`` are equal, and go through the model as one.
        """
        return self.sampler.transition(x, self._velocity(x, t, conditioning, alike), t)

    def check_noise(self) -> None:
        """Refuse a window that comes to a step with almost no noise.

        Raises:
            StarError: names the step.
        """
        first, end = self.settings.window
        last = self.settings.window_limit if self.settings.slide_every else end
        for t in range(0 if self.settings.slide_every else first, last):
            if (std := self.std(t)) < LEAST_STD:
                raise StarError(
                    f"rollout.window: step {t} has a standard deviation of {std:.2g}, too little "
                    f"to learn from (at least {LEAST_STD}); raise rollout.noise_level, or train "
                    "other steps"
                )

    def std(self, t: int) -> float:
        """Return the standard deviation of a stochastic step ``t``, the same for all latents."""
        nothing = torch.zeros(())
        return self.sampler.transition(nothing, nothing, t).std

    def again(self, trajectory: Trajectory, row: int) -> Transition:
        """Return the current policy's step from the latents of trained step ``row``."""
        alike = trajectory.shared if row == 0 else 1
        t = trajectory.first + row
        return self.transition(trajectory.latents[row], t, trajectory.conditioning, alike)

    @torch.no_grad()
    def draw(
        self,
        prompts: Sequence[str],
        start_seeds: Sequence[int],
        step_seeds: Sequence[int],
        first: int,
        core: CoreKeys | None,
        allocation: AllocationParams,
        keep: bool = False,
    ) -> Trajectory:
        """Draw one batch of rollouts.

        Args:
            start_seeds: seed of each rollout's initial noise; equal seeds share it.
            step_seeds: seed of each rollout's later noise, distinct.
            first: the first stochastic step; the window keeps its length.
            core: core tokens of each prompt; None if the allocation needs no maps.
            keep: whether the trained steps keep their graphs, for an update by these weights.
        """
        policy, sigmas = self.policy, self.schedule.sigmas
        conditioning = policy.encode(prompts)
        end = first + self.settings.window[1] - self.settings.window[0]
        generators = [torch.Generator().manual_seed(seed) for seed in step_seeds]
        shared = _shared(prompts, start_seeds)
        x = policy.noise(start_seeds)
        latents, means, masses, graphs = [], [], [], []
        last = self.settings.steps - 1 if self.settings.last_step == "sde" else None
        for t in range(self.settings.steps):
            alike = shared if t <= first else 1
            trained = first <= t < end
            if not trained and t != last:
                velocity = self._velocity(x, t, conditioning, alike)
                x = ode_step(x, velocity, sigmas[t], sigmas[t + 1])
                continue
            # Compiled blocks round otherwise where they keep a graph, as those of the update do.
            graph = trained and (keep or policy.model.compile != "no")
            with torch.set_grad_enabled(graph):
                if core is None or not trained:
                    transition = self.transition(x, t, conditioning, alike)
                else:
                    one = slice(None, None, alike)
                    inputs = x[one], self.schedule.timesteps[t], conditioning[one], core[one]
                    with watched(policy, *inputs, allocation) as seen:
                        transition = self.transition(x, t, conditioning, alike)
                    masses.append(seen().repeat_interleave(alike, dim=0))
            if trained and keep:
                graphs.append(transition)
            transition = replace(transition, mean=transition.mean.detach())  # the graph may go
            if trained:
                latents.append(x)
                means.append(transition.mean)
            noise = [torch.randn(policy.latent_shape, generator=g) for g in generators]
            x = transition.sample(torch.stack(noise).to(x.device))
            if t == end - 1:
                latents.append(x)
        return Trajectory(
            conditioning=conditioning,
            latents=torch.stack(latents),
            means=torch.stack(means),
            relevance=None if core is None else relevance_of(masses, core, allocation),
            first=first,
            shared=shared,
            images=decoded(policy, x, prompts),
            graphs=graphs,
        )

    def _velocity(self, x: Tensor, t: int, conditioning: Conditioning, alike: int) -> Tensor:
        velocity = self.policy.velocity(
            x[::alike], self.schedule.timesteps[t], conditioning[::alike]
        )
        return velocity.repeat_interleave(alike, dim=0)


def _shared(prompts: Sequence[str], start_seeds: Sequence[int]) -> int:
    """Return the largest length that cuts the batch into runs of one prompt and noise."""
    runs = groupby(zip(prompts, start_seeds, strict=True))
    return math.gcd(*(len(list(run)) for _, run in runs))
