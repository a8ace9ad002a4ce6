"""Flow-GRPO (arXiv 2505.05470) with STAR's surrogates: ratios of a rollout's stochastic steps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from star.config.params import AllocationParams, Params
from star.method.attention import CoreKeys
from star.method.objective import (
    KL_LIMIT,
    SURROGATES,
    Surrogate,
    kl_penalty,
    location_kl,
    noise_weights,
    patch_mean,
)
from star.method.sde import Transition, log_ratio
from star.policy.rollout import Roller, Trajectory
from star.policy.sd3 import SD3Policy
from star.system.errors import StarError
from star.system.processes import Processes
from star.training.algorithm import Algorithm, Scored, Term
from star.training.batches import Batch, window_start


class PolicyGradient(Algorithm):
    """Raises a `StarError` for a window with a step of almost no noise."""

    def __init__(
        self, params: Params, allocation: AllocationParams, policy: SD3Policy, processes: Processes
    ) -> None:
        super().__init__(params, allocation, policy, processes)
        self.train = params.train
        self.roller = Roller(policy, params.rollout)
        self.roller.check_noise()
        no_strength = allocation.source != "uniform" and not allocation.uses_maps
        self.objective = SURROGATES["scalar" if no_strength else allocation.objective]

    def draw(self, batch: Batch, epoch: int, core: CoreKeys | None) -> Trajectory:
        prompts = [record.prompt for record in batch.records]
        first = window_start(self.params.rollout, epoch)
        seeds = batch.start_seeds, batch.step_seeds
        keep = self.train.reuse_rollout
        return self.roller.draw(prompts, *seeds, first, core, self.allocation, keep)

    def term(self, item: Scored, row: int, logged: bool) -> Term:
        surrogate, transition = self.surrogate(item, row)
        loss, kl = surrogate.loss, surrogate.loss.new_full((), torch.nan)
        if self.train.kl_form != "none" and (self.train.kl_beta > 0 or logged):
            reference, form = self.reference_mean(item, row), self.train.kl_form
            kl = kl_penalty(transition, reference, form).detach()
            if self.train.kl_beta > 0:
                penalty = kl_penalty(transition, reference, form, item.factors)
                loss = loss + self.train.kl_beta * penalty
        if self.train.step_weight == "noise":
            loss = loss * self.noise_weights(item)[row]
        ratio = surrogate.ratio
        figures = {"ratio_mean": ratio.mean(), "ratio_min": ratio.min(), "ratio_max": ratio.max()}
        return Term(loss, {**figures, "clip_fraction": surrogate.clipped, "kl": kl})

    def surrogate(self, item: Scored, row: int) -> tuple[Surrogate, Transition]:
        """Return the surrogate of one trained step, and the current policy's transition."""
        trajectory, normalised = item.trajectory, self.train.normalise_ratio
        assert isinstance(trajectory, Trajectory)
        if trajectory.graphs:
            transition = trajectory.graphs[row]
        else:
            transition = self.roller.again(trajectory, row)
        x_next, old_mean = trajectory.latents[row + 1], trajectory.means[row]
        elements = log_ratio(x_next, transition, old_mean, normalised)
        locations = patch_mean(elements, self.policy.patch)  # (B, P)
        kl = None
        if self.train.trust == "kl_mask":
            kl = location_kl(transition, old_mean, self.policy.patch)
        credit = item.advantages * item.factors[:, None], item.weights[:, row]
        return self.objective(locations, *credit, self.train.clip_range, kl), transition

    def noise_weights(self, item: Scored) -> list[float]:
        """Return the weight of each trained step, of mean 1 over those of the epoch."""
        assert isinstance(item.trajectory, Trajectory)
        first = item.trajectory.first
        steps = range(first, first + item.trajectory.steps)
        return noise_weights([self.roller.std(t) for t in steps])

    def reference_mean(self, item: Scored, row: int) -> Tensor:
        """Return the mean of one step by the base model, of a second pass without LoRA."""
        assert isinstance(item.trajectory, Trajectory)
        with torch.no_grad(), self.policy.reference():
            return self.roller.again(item.trajectory, row).mean

    def check(self, epoch: int, first: Sequence[Term]) -> dict[str, Tensor]:
        """Return how far the ratios are from 1, where all must be 1; see `refuse_clipped`."""
        keys = "ratio_min", "ratio_max"
        ends = torch.stack([term.figures[key] for term in first for key in keys])
        worst = (ends - 1).abs().max()
        clipped = torch.stack([term.figures["clip_fraction"] for term in first])
        self.refuse_clipped(epoch, self.processes.any(bool(clipped.any())), worst)
        return {"first_ratio_error": worst}

    def refuse_clipped(self, epoch: int, clipped: bool, worst: Tensor) -> None:
        """Refuse clipped ratios before an epoch's first optimizer step.

        Raises:
            StarError: rollout and update compute one policy differently, beyond `train.trust`.
        """
        if clipped:
            bound = f"train.clip_range {self.train.clip_range:g}"
            if self.train.trust == "kl_mask":
                bound = f"the KL of train.trust kl_mask, {KL_LIMIT:g}"
            raise StarError(
                f"epoch {epoch + 1}: ratios differ from 1 by up to {worst.item():.2g} before the "
                f"first update, outside {bound}: rollout and update compute the same policy "
                f'differently. Set model.compile to "no" (it is {self.params.model.compile}), or '
                f'model.precision to "no" (it is {self.policy.model.precision})'
            )
