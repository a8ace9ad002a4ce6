"""Group-relative advantages, the clipped surrogates (scalar and spatially resolved) and the KL
penalty.

Locations ``p`` are the transformer's image tokens (patches of the latent), in its row-major order.
Symbols as in the README's Method section: rollout ``i``, step ``t``, clause ``k``, location ``p``,
log-ratio ``d = l - l_old``, advantage ``A``, allocation map ``w``. Shapes: rollouts ``B``, clauses
``K``, locations ``P``."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from star.method.sde import Transition


def group_advantages(shares: Tensor, group_size: int, limit: float) -> Tensor:
    """Flow-GRPO's advantage (arXiv 2505.05470): ``(R - group mean) / (batch std + 1e-4)``, clipped
    to ``+-limit``.

    Clause by clause where the reward ``R`` is a sum of shares: each has its own group mean, and all
    are divided by the spread of ``R``, so that before the clipping the advantages of a rollout's
    clauses add up to that of ``R``.

    Args:
        shares: (groups * group_size, K), the rollouts of a group side by side; the sum over K is
            the reward.

    Returns:
        Like ``shares``.
    """
    centred = shares - shares.unflatten(0, (-1, group_size)).mean(1).repeat_interleave(
        group_size, dim=0
    )
    return (centred / (shares.sum(1).std(correction=0) + 1e-4)).clamp(-limit, limit)


def patch_mean(values: Tensor, patch: int) -> Tensor:
    """Mean of the elements inside each patch: (batch, channels, height, width) -> (batch,
    locations)."""
    return torch.nn.functional.avg_pool2d(values, patch).mean(1).flatten(1)


@dataclass(frozen=True)
class Surrogate:
    """A clipped surrogate loss and what the log wants to know of its ratios."""

    loss: Tensor  # scalar
    ratio: Tensor  # detached: (B,) scalar, (B, K) weighted, (B, P) local
    clipped: Tensor  # share of ratios outside the clip range, detached scalar


def scalar_surrogate(
    log_ratio: Tensor, advantage: Tensor, weights: Tensor, clip_range: float
) -> Surrogate:
    """Flow-GRPO's objective: one ratio an image, of the log-ratio averaged over all elements; maps
    are not used.

    Args:
        log_ratio: (B, P), patch means.
        advantage: (B, K); the clauses' are added.
        weights: not used.
        clip_range: epsilon of ``clip(r, 1 - eps, 1 + eps)``.
    """
    return _clipped(log_ratio.mean(1, keepdim=True), advantage.sum(1, keepdim=True), clip_range)


def weighted_surrogate(
    log_ratio: Tensor, advantage: Tensor, weights: Tensor, clip_range: float
) -> Surrogate:
    """One ratio an image and clause, of the log-ratio averaged with the map: ``exp(mean_p w_p
    d_p)``.

    Same gradient as `local_surrogate` where the policy has not moved yet (D6). The weighted mean of
    independent locations is wider by the root of ``mean_p w_p^2``; the clip range is scaled alike
    (D4).

    Args:
        log_ratio: (B, P), patch means.
        advantage: (B, K).
        weights: allocation maps, (B, K, P).
        clip_range: epsilon of the *scalar* ratio.
    """
    wide = clip_range * weights.square().mean(2).sqrt()  # (B, K)
    of_the_sum = advantage * advantage.shape[1]  # the mean over clauses becomes their sum
    return _clipped((weights * log_ratio[:, None]).mean(2), of_the_sum, wide)


def local_surrogate(
    log_ratio: Tensor, advantage: Tensor, weights: Tensor, clip_range: float
) -> Surrogate:
    """The spatially resolved objective (STAR, arXiv 2606.17979, in our reconstruction D4): one
    ratio a location.

    ``A_{i,t,p} = sum_k A_{i,k} w_{i,t,k,p}`` meets the ratio of location ``p``; the surrogate is
    averaged over locations. A patch averages ``P`` times fewer elements than the image, so its
    log-ratio is wider by the square root of that; the clip range is scaled alike.

    Args:
        log_ratio: (B, P), patch means.
        advantage: (B, K).
        weights: allocation maps, (B, K, P), unit mean over locations (or over locations and steps).
        clip_range: epsilon of the *scalar* ratio.
    """
    wide = clip_range * math.sqrt(log_ratio.shape[1])
    return _clipped(log_ratio, torch.einsum("bk,bkp->bp", advantage, weights), wide)


SURROGATES = {"scalar": scalar_surrogate, "weighted": weighted_surrogate, "local": local_surrogate}


def _clipped(log_ratio: Tensor, advantage: Tensor, clip_range: float | Tensor) -> Surrogate:
    """Mean over rollouts and locations of ``max(-A r, -A clip(r))``."""
    ratio = log_ratio.exp()
    reach = torch.as_tensor(clip_range, dtype=ratio.dtype, device=ratio.device)
    clip = ratio.clamp(1 - reach, 1 + reach)
    outside = ((ratio.detach() - 1).abs() > clip_range).float().mean()
    return Surrogate(
        torch.maximum(-advantage * ratio, -advantage * clip).mean(), ratio.detach(), outside
    )


def kl_penalty(transition: Transition, reference_mean: Tensor, form: str) -> Tensor:
    """KL of the step from the reference model's step, averaged over all elements: a scalar.

    ``published``: ``(mean - mean_ref)^2 / (2 std^2)`` as in Flow-GRPO's code; ``exact``: the
    Gaussian KL, whose variance is ``std^2 (-dt)``."""
    variance = transition.noise_scale**2 * (transition.step if form == "exact" else 1.0)
    return ((transition.mean - reference_mean) ** 2).mean() / (2 * variance)
