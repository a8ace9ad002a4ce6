"""Group-relative advantages, the clipped surrogates (scalar and spatially resolved) and the KL penalty.

Locations ``p`` are the transformer's image tokens (patches of the latent), in its row-major order. Symbols as in the
README's Method section: rollout ``i``, step ``t``, location ``p``, log-probability ``l``, ratio ``r``, advantage ``A``.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from star.sde import Transition


def group_advantages(rewards: Tensor, group_size: int, limit: float) -> Tensor:
    """Flow-GRPO's advantage (arXiv 2505.05470): ``(R - group mean) / (batch std + 1e-4)``, clipped to ``+-limit``.

    Args:
        rewards: (groups * group_size,), the rollouts of a group side by side.
    """
    centred = rewards - rewards.view(-1, group_size).mean(1).repeat_interleave(group_size)
    return (centred / (rewards.std(correction=0) + 1e-4)).clamp(-limit, limit)


def patch_mean(values: Tensor, patch: int) -> Tensor:
    """Mean of the elements inside each patch: (batch, channels, height, width) -> (batch, locations)."""
    return torch.nn.functional.avg_pool2d(values, patch).mean(1).flatten(1)


@dataclass(frozen=True)
class Surrogate:
    """A clipped surrogate loss and what the log wants to know of its ratios."""

    loss: Tensor  # scalar
    ratio: Tensor  # (batch,) or (batch, locations), detached
    clipped: Tensor  # share of ratios outside the clip range, detached scalar


def scalar_surrogate(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip_range: float) -> Surrogate:
    """Flow-GRPO's objective: one ratio a picture, of the log-probability averaged over all elements.

    Args:
        log_prob, old_log_prob: (batch, locations), patch means.
        advantage: (batch,).
        clip_range: epsilon of ``clip(r, 1 - eps, 1 + eps)``.
    """
    return _clipped((log_prob - old_log_prob).mean(1), advantage, clip_range)


def local_surrogate(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, weights: Tensor, clip_range: float
) -> Surrogate:
    """The spatially resolved objective (STAR, arXiv 2606.17979, in our reconstruction D4): one ratio a location.

    ``A_{i,t,p} = w_{i,t,p} A_i`` meets the ratio of location ``p``; the surrogate is averaged over locations. A patch
    averages ``locations`` times fewer elements than the picture, so its log-ratio is wider by the square root
    of that; the clip range is scaled alike.

    Args:
        log_prob, old_log_prob: (batch, locations).
        advantage: (batch,).
        weights: allocation map, (batch, locations), unit mean over locations (or over locations and steps).
        clip_range: epsilon of the *scalar* ratio.
    """
    wide = clip_range * math.sqrt(log_prob.shape[1])
    return _clipped(log_prob - old_log_prob, weights * advantage[:, None], wide)


def _clipped(log_ratio: Tensor, advantage: Tensor, clip_range: float) -> Surrogate:
    ratio = log_ratio.exp()
    loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip_range, 1 + clip_range)).mean()
    outside = ((ratio.detach() - 1).abs() > clip_range).float().mean()
    return Surrogate(loss, ratio.detach(), outside)


def kl_penalty(transition: Transition, reference_mean: Tensor, form: str) -> Tensor:
    """KL of the step from the reference model's step, averaged over all elements: a scalar.

    ``published``: ``(mean - mean_ref)^2 / (2 std^2)`` as in Flow-GRPO's code; ``exact``: the Gaussian KL, whose
    variance is ``std^2 (-dt)``.
    """
    variance = transition.noise_scale**2 * (transition.step if form == "exact" else 1.0)
    return ((transition.mean - reference_mean) ** 2).mean() / (2 * variance)
