"""Algorithms that noise the finished images again (`star.method.forward`)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from star.config.params import AllocationParams, Params
from star.method.attention import CoreKeys
from star.method.forward import awm_loss, noised, stratified_levels
from star.method.seeds import seed_of
from star.policy.conditioning import Conditioning
from star.policy.rollout import decoded, relevance_of, sample_latents, watched
from star.policy.sd3 import SD3Policy
from star.system.processes import Processes
from star.training.algorithm import Algorithm, Scored, Term
from star.training.batches import Batch


@dataclass(frozen=True)
class Noised:
    """``B`` finished images at ``T`` noise levels each; the fields of `Rollouts`, and

    clean: latents (B, channels, height, width). levels: (T, B). noise, velocities: (T, B, channels,
    height, width), the velocities of the policy that drew the images. All float32.
    """

    conditioning: Conditioning
    clean: Tensor
    levels: Tensor
    noise: Tensor
    velocities: Tensor
    relevance: Tensor | None
    images: np.ndarray

    @property
    def steps(self) -> int:
        return len(self.levels)


class ForwardProcess(Algorithm):
    """AWM (arXiv 2509.25050): maps are read where it is trained, at the noised images."""

    def __init__(
        self, params: Params, allocation: AllocationParams, policy: SD3Policy, processes: Processes
    ) -> None:
        super().__init__(params, allocation, policy, processes)
        self.settings = params.forward
        self.sigmas = policy.schedule(params.rollout.steps).sigmas

    @torch.no_grad()
    def draw(self, batch: Batch, epoch: int, core: CoreKeys | None) -> Noised:
        policy, prompts = self.policy, [record.prompt for record in batch.records]
        conditioning = policy.encode(prompts)
        clean = sample_latents(policy, conditioning, batch.start_seeds, self.params.rollout.steps)
        levels, noise = self._levels(batch).to(policy.device), self._noise(batch)
        velocities, masses = [], []
        for t, e in zip(levels, noise, strict=True):
            inputs = noised(clean, e, t), policy.timesteps(t), conditioning
            if core is None:
                velocities.append(policy.velocity(*inputs))
                continue
            with watched(policy, *inputs, core, self.allocation) as seen:
                velocities.append(policy.velocity(*inputs))
            masses.append(seen())
        return Noised(
            conditioning=conditioning,
            clean=clean,
            levels=levels,
            noise=noise,
            velocities=torch.stack(velocities),
            relevance=None if core is None else relevance_of(masses, core, self.allocation),
            images=decoded(policy, clean, prompts),
        )

    def term(self, item: Scored, row: int, logged: bool) -> Term:
        drawn, policy = item.trajectory, self.policy
        assert isinstance(drawn, Noised)
        t, e = drawn.levels[row], drawn.noise[row]
        x = noised(drawn.clean, e, t)
        loss, drift = awm_loss(
            policy.velocity(x, policy.timesteps(t), drawn.conditioning),
            drawn.velocities[row],
            e - drawn.clean,
            item.advantages,
            item.weights[:, row],
            self.settings.anchor,
            policy.patch,
        )
        return Term(loss, {"drift": drift})

    def _levels(self, batch: Batch) -> Tensor:
        """Return each rollout's noise levels, (T, B): those of its group."""
        seeds = [seed_of(self.params.seed, "levels", group) for group in batch.groups]
        rows = [
            stratified_levels(self.sigmas, self.settings.draws, np.random.default_rng(seed))
            for seed in seeds
        ]
        return torch.tensor(rows, dtype=torch.float32).T

    def _noise(self, batch: Batch) -> Tensor:
        """Return the noise at each level, (T, B, ...): one for all of a group."""
        seed = self.params.seed
        return torch.stack(
            [
                self.policy.noise([seed_of(seed, "noise", group, row) for group in batch.groups])
                for row in range(self.settings.draws)
            ]
        )
