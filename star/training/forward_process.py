"""Algorithms that noise the finished images again (`star.method.forward`)."""

from abc import abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from star.config.params import AllocationParams, Params
from star.method.allocation import allocation_weights
from star.method.attention import CoreKeys
from star.method.ema import Average, lent
from star.method.forward import LEVELS, awm_loss, nft_loss, noised, old_share, softly_clipped
from star.method.seeds import seed_of
from star.policy.conditioning import Conditioning
from star.policy.rollout import decoded, relevance_of, sample_latents, watched
from star.policy.sd3 import SD3Policy
from star.system.processes import Processes
from star.training.algorithm import Algorithm, Scored, Term
from star.training.batches import Batch, looks_ahead


@dataclass(frozen=True)
class Noised:
    """``B`` finished images at ``T`` noise levels each; the fields of `Rollouts`, and

    clean: latents (B, channels, height, width). levels: (T, B). noise, velocities: (T, B, channels,
    height, width), the velocities of the policy that drew the images. All float32.
    core: core tokens, whose maps are read as the images are trained; until then ``relevance`` is 0.

    Without `looks_ahead` there are no velocities: the policy that is trained is still the one that
    drew the images.
    """

    conditioning: Conditioning
    clean: Tensor
    levels: Tensor
    noise: Tensor
    velocities: Tensor | None
    relevance: Tensor | None
    core: CoreKeys | None
    images: np.ndarray

    @property
    def steps(self) -> int:
        return len(self.levels)

    def at(self, row: int) -> Tensor:
        """Return the images at the noise levels of step ``row``, like ``clean``."""
        return noised(self.clean, self.noise[row], self.levels[row])


class ForwardProcess(Algorithm):
    """What AWM and NFT share: the images, their noise, the maps there, and the anchor."""

    def __init__(
        self, params: Params, allocation: AllocationParams, policy: SD3Policy, processes: Processes
    ) -> None:
        super().__init__(params, allocation, policy, processes)
        self.settings = params.forward
        self.parameters = [p for p in policy.transformer.parameters() if p.requires_grad]
        self.sigmas = policy.schedule(params.rollout.steps).sigmas
        self.ahead = looks_ahead(params, allocation)

    def old(self) -> AbstractContextManager[None]:
        """Make the policy the one that draws, inside."""
        return nullcontext()

    def anchor(self) -> AbstractContextManager[None]:
        """Make the policy the anchor, inside, where that is not the old one."""
        return self.policy.reference()

    @abstractmethod
    def objective(
        self, drawn: Noised, row: int, velocity: Tensor, old: Tensor, credit: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Return the loss without the anchor.

        Args:
            velocity, old: of the trained policy, and of the one that drew the images.
            credit: advantages (B, K), and maps (B, K, P).
        """

    @torch.no_grad()
    def draw(self, batch: Batch, epoch: int, core: CoreKeys | None) -> Noised:
        policy, prompts = self.policy, [record.prompt for record in batch.records]
        steps, solver = self.params.rollout.steps, self.settings.solver
        velocities, relevance = None, None
        with self.old():
            conditioning = policy.encode(prompts)
            clean = sample_latents(policy, conditioning, batch.start_seeds, steps, solver)
            levels, noise = self._levels(batch).to(policy.device), self._noise(batch)
            if self.ahead:
                pairs = zip(levels, noise, strict=True)
                rows = ((noised(clean, e, t), policy.timesteps(t)) for t, e in pairs)
                velocities, relevance = self._look(rows, conditioning, core)
            elif core is not None:
                shape = len(clean), len(levels), core.weight.shape[1], policy.locations
                relevance = clean.new_zeros(shape)
        return Noised(
            conditioning=conditioning,
            clean=clean,
            levels=levels,
            noise=noise,
            velocities=velocities,
            relevance=relevance,
            core=None if self.ahead else core,
            images=decoded(policy, clean, prompts),
        )

    def term(self, item: Scored, row: int, logged: bool) -> Term:
        drawn, policy, settings = item.trajectory, self.policy, self.settings
        assert isinstance(drawn, Noised)
        inputs = drawn.at(row), policy.timesteps(drawn.levels[row]), drawn.conditioning
        anchored = None
        if settings.anchor_to != "old" and settings.anchor > 0:
            with torch.no_grad(), self.anchor():
                anchored = policy.velocity(*inputs)
        if drawn.core is None:
            velocity = policy.velocity(*inputs)
        else:
            velocity, mass = self._seen(*inputs, drawn.core)
            relevance = relevance_of([mass], drawn.core, self.allocation)
            strength, form = self.allocation.lam, self.allocation.clause_maps
            maps = allocation_weights(relevance, strength, clause_maps=form)
            item.weights[:, row : row + 1] = maps  # a list as an index would be copied to a GPU
        old = velocity.detach() if drawn.velocities is None else drawn.velocities[row]
        advantages = item.advantages
        if settings.advantage == "tanh":
            advantages = softly_clipped(advantages)
        loss = self.objective(drawn, row, velocity, old, (advantages, item.weights[:, row]))
        if settings.anchor_to != "old" and anchored is None:
            return Term(loss, {"drift": loss.new_full((), torch.nan)})
        drift = (velocity - (old if anchored is None else anchored)).square().mean()
        return Term(loss + settings.anchor * drift, {"drift": drift.detach()})

    def _look(
        self,
        rows: Iterable[tuple[Tensor, Tensor]],
        conditioning: Conditioning,
        core: CoreKeys | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the velocities (T, B, ...) of noised images and timesteps, and the maps if any."""
        if core is None:
            return torch.stack([self.policy.velocity(*each, conditioning) for each in rows]), None
        seen = [self._seen(*each, conditioning, core) for each in rows]
        velocities, masses = zip(*seen, strict=True)
        return torch.stack(velocities), relevance_of(masses, core, self.allocation)

    def _seen(
        self, x: Tensor, timestep: Tensor, conditioning: Conditioning, core: CoreKeys
    ) -> tuple[Tensor, Tensor]:
        """Return the velocity, and the mass on the core tokens in its forward pass, (B, P, C)."""
        inputs = x, timestep, conditioning
        with watched(self.policy, *inputs, core, self.allocation) as seen:
            velocity = self.policy.velocity(*inputs)
        return velocity, seen()

    def _keys(self, batch: Batch) -> list[int]:
        """Return what the levels and noise of each rollout are drawn by: its group, or itself."""
        return batch.groups if self.settings.shared_noise else batch.step_seeds

    def _levels(self, batch: Batch) -> Tensor:
        """Return each rollout's noise levels, (T, B)."""
        seeds = [seed_of(self.params.seed, "levels", key) for key in self._keys(batch)]
        draw = LEVELS[self.settings.levels]
        rows = [
            draw(self.sigmas, self.settings.draws, np.random.default_rng(seed)) for seed in seeds
        ]
        return torch.tensor(rows, dtype=torch.float32).T

    def _noise(self, batch: Batch) -> Tensor:
        """Return the noise at each level, (T, B, ...)."""
        seed, keys = self.params.seed, self._keys(batch)
        return torch.stack(
            [
                self.policy.noise([seed_of(seed, "noise", key, row) for key in keys])
                for row in range(self.settings.draws)
            ]
        )


class AdvantageWeightedMatching(ForwardProcess):
    """AWM (arXiv 2509.25050). With a frozen base as anchor it is RAM (arXiv 2605.10759)."""

    def __init__(
        self, params: Params, allocation: AllocationParams, policy: SD3Policy, processes: Processes
    ) -> None:
        super().__init__(params, allocation, policy, processes)
        kept = self.settings.anchor_to == "ema"
        self.average = Average(self.parameters, self.settings.anchor_decay, 1) if kept else None

    def anchor(self) -> AbstractContextManager[None]:
        return lent(self.parameters, self.average.values) if self.average else super().anchor()

    def follow(self, updates: int) -> None:
        if self.average:
            self.average.update(self.parameters, updates)

    def tensors(self) -> dict[str, Tensor]:
        values = self.average.values if self.average else []
        return {f"anchor.{i}": value for i, value in enumerate(values)}

    def objective(
        self, drawn: Noised, row: int, velocity: Tensor, old: Tensor, credit: tuple[Tensor, Tensor]
    ) -> Tensor:
        target = drawn.noise[row] - drawn.clean
        return awm_loss(velocity, target, *credit, self.settings.level_scale, self.policy.patch)


class DiffusionNFT(ForwardProcess):
    """NFT (arXiv 2509.16117). Its old policy draws, and follows the trained one by epochs.

    It begins as the adapter that is there when this is made.
    """

    def __init__(
        self, params: Params, allocation: AllocationParams, policy: SD3Policy, processes: Processes
    ) -> None:
        super().__init__(params, allocation, policy, processes)
        self.values = [parameter.detach().clone() for parameter in self.parameters]

    def old(self) -> AbstractContextManager[None]:
        return lent(self.parameters, self.values)

    def objective(
        self, drawn: Noised, row: int, velocity: Tensor, old: Tensor, credit: tuple[Tensor, Tensor]
    ) -> Tensor:
        images = drawn.at(row), drawn.clean, drawn.levels[row]
        limit, beta = self.params.train.advantage_clip, self.settings.nft_beta
        return nft_loss(velocity, old, *images, *credit, limit, beta, self.policy.patch)

    @torch.no_grad()
    def follow(self, updates: int) -> None:
        settings = self.settings
        share = old_share(updates, settings.old_wait, settings.old_rate, settings.old_most)
        torch._foreach_lerp_(self.values, self.parameters, 1 - share)

    def tensors(self) -> dict[str, Tensor]:
        return {f"old.{i}": value for i, value in enumerate(self.values)}
