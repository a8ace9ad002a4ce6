"""Group-relative advantages, the clipped surrogates (scalar and per location), and the KL penalty.

Symbols as in docs/method.md: log-ratio ``d = l - l_old``, advantage ``A``, allocation
map ``w``. Shapes: rollouts ``B``, clauses ``K``, locations ``P``. Locations are the transformer's
image tokens (patches of the latent), row-major.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from star.method.sde import Transition


def group_advantages(shares: Tensor, group_size: int, limit: float) -> Tensor:
    """Return Flow-GRPO's advantages (arXiv 2505.05470), clipped to ``+-limit``: like ``shares``.

    ``(R - group mean) / (batch std + 1e-4)``, clause by clause where the reward ``R`` is a sum of
    shares. Each clause has its own group mean, and all are divided by the spread of ``R``. Before
    the clipping, the advantages of a rollout's clauses then add up to that of ``R``.

    Args:
        shares: (groups * group_size, K), the rollouts of a group side by side; the sum over K is
            the reward.
    """
    means = shares.unflatten(0, (-1, group_size)).mean(1).repeat_interleave(group_size, dim=0)
    return ((shares - means) / (shares.sum(1).std(correction=0) + 1e-4)).clamp(-limit, limit)


def patch_mean(values: Tensor, patch: int) -> Tensor:
    """Return the mean of each patch, (B, P), of values (B, channels, height, width)."""
    return torch.nn.functional.avg_pool2d(values, patch).mean(1).flatten(1)


@dataclass(frozen=True)
class Surrogate:
    """A clipped surrogate loss, and figures for the log.

    loss: scalar. ratio: detached; (B, 1) scalar, (B, K) weighted, (B, P) local. clipped: share of
    ratios outside the clip range, a detached scalar.
    """

    loss: Tensor
    ratio: Tensor
    clipped: Tensor


# Each surrogate takes log-ratios (B, P), means over patches; advantages (B, K); allocation maps (B,
# K, P) of mean 1 over locations (or over locations and steps); and the clip range of the *scalar*
# ratio, epsilon of ``clip(r, 1 - epsilon, 1 + epsilon)``.


def scalar_surrogate(
    log_ratio: Tensor, advantage: Tensor, weights: Tensor, clip_range: float
) -> Surrogate:
    """Return Flow-GRPO's objective: one ratio per image, of the mean log-ratio; no map is used.

    The advantages of the clauses are added.
    """
    return _clipped(log_ratio.mean(1, keepdim=True), advantage.sum(1, keepdim=True), clip_range)


def weighted_surrogate(
    log_ratio: Tensor, advantage: Tensor, weights: Tensor, clip_range: float
) -> Surrogate:
    """Return the objective with one ratio per image and clause, ``exp(mean_p w_p d_p)``.

    Where the policy has not moved yet, its gradient is that of `local_surrogate` (D6). If locations
    are independent, its log-ratio spreads ``sqrt(mean_p w_p^2)`` times wider than the scalar one,
    so the clip range is multiplied by that (D4).
    """
    scaled_clip_range = clip_range * weights.square().mean(2).sqrt()  # (B, K)
    scaled_advantage = advantage * advantage.shape[1]  # the mean over clauses becomes their sum
    weighted = (weights * log_ratio[:, None]).mean(2)
    return _clipped(weighted, scaled_advantage, scaled_clip_range)


def local_surrogate(
    log_ratio: Tensor, advantage: Tensor, weights: Tensor, clip_range: float
) -> Surrogate:
    """Return STAR's objective (arXiv 2606.17979; our reconstruction, D4): one ratio per location.

    ``A_{i,t,p} = sum_k A_{i,k} w_{i,t,k,p}`` multiplies the ratio of location ``p``; the loss is
    the mean over locations. Its log-ratio spreads ``sqrt(P)`` times wider (a patch averages fewer
    elements), so the clip range is multiplied by ``sqrt(P)``.
    """
    scaled_clip_range = clip_range * math.sqrt(log_ratio.shape[1])
    return _clipped(log_ratio, torch.einsum("bk,bkp->bp", advantage, weights), scaled_clip_range)


SURROGATES: dict[str, Callable[[Tensor, Tensor, Tensor, float], Surrogate]] = {
    "scalar": scalar_surrogate,
    "weighted": weighted_surrogate,
    "local": local_surrogate,
}


def _clipped(log_ratio: Tensor, advantage: Tensor, clip_range: float | Tensor) -> Surrogate:
    """Average ``max(-A r, -A clip(r))`` over rollouts and locations."""
    ratio = log_ratio.exp()
    epsilon = torch.as_tensor(clip_range, dtype=ratio.dtype, device=ratio.device)
    clipped_ratio = ratio.clamp(1 - epsilon, 1 + epsilon)
    outside = ((ratio.detach() - 1).abs() > clip_range).float().mean()
    loss = torch.maximum(-advantage * ratio, -advantage * clipped_ratio).mean()
    return Surrogate(loss, ratio.detach(), outside)


def noise_weights(stds: Sequence[float]) -> list[float]:
    """Return TempFlow-GRPO's weights of the trained steps' losses (arXiv 2508.04324), of mean 1.

    A step of size ``dt`` at noise level ``s`` has a gradient that goes as ``sqrt(dt (1-s) / s)``,
    so nearly noiseless steps dominate. Times the step's noise ``g sqrt(dt)`` it goes as ``dt``.

    Args:
        stds: of the steps, as in `Transition`.
    """
    mean = sum(stds) / len(stds)
    return [std / mean for std in stds]


def kl_penalty(transition: Transition, reference_mean: Tensor, form: str) -> Tensor:
    """Return the KL of the step from the reference model's, averaged over elements: a scalar.

    ``exact``: ``(mean - mean_ref)^2 / (2 std^2)``. ``published``: as in Flow-GRPO's code, with
    `Transition.kl_std` in the place of ``std``.
    """
    std = transition.std if form == "exact" else transition.kl_std
    return ((transition.mean - reference_mean) ** 2).mean() / (2 * std**2)
