"""Group-relative advantages, the surrogates (scalar and per location), and the KL penalty.

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

KL_LIMIT = 1e-5  # an element; Flow-DPPO's (arXiv 2606.11025)


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


def factors_without_zeros(shares: Tensor, group_size: int, updates: int) -> Tensor:
    """Return each rollout's factor in the loss if those of advantage 0 leave its mean: (N,).

    0 for those, and for the others what makes the factors' mean over an update 1. All are 0 in an
    update that has none of them. Flow-GRPO's code (arXiv 2505.05470) does so. Means of groups are
    in float64 here: of equal rewards they are exact.

    Args:
        shares: (N, K) as in `group_advantages`, of ``updates`` updates, one after the other.
    """
    groups = shares.double().unflatten(0, (-1, group_size))
    away = (groups != groups.mean(1, keepdim=True)).any(2)
    kept = away.to(shares.dtype).view(updates, -1)
    return (kept / kept.mean(1, keepdim=True)).nan_to_num().flatten()


def patch_mean(values: Tensor, patch: int) -> Tensor:
    """Return the mean of each patch, (B, P), of values (B, channels, height, width)."""
    return torch.nn.functional.avg_pool2d(values, patch).mean(1).flatten(1)


@dataclass(frozen=True)
class Surrogate:
    """A surrogate loss, and figures for the log.

    loss: scalar. ratio: detached; (B, 1) scalar, (B, K) weighted, (B, P) local. clipped: share of
    ratios outside the clip range, or dropped by the KL mask; a detached scalar.
    """

    loss: Tensor
    ratio: Tensor
    clipped: Tensor


# Each surrogate takes log-ratios (B, P), means over patches; advantages (B, K); allocation maps (B,
# K, P) of mean 1 over locations (or over locations and steps); the clip range of the *scalar*
# ratio, epsilon of ``clip(r, 1 - epsilon, 1 + epsilon)``; and the KL of `location_kl` if a mask by
# it takes the place of the clip. The KL of a ratio is averaged as its log-ratio is.


def scalar_surrogate(
    log_ratio: Tensor,
    advantage: Tensor,
    weights: Tensor,
    clip_range: float,
    kl: Tensor | None = None,
) -> Surrogate:
    """Return Flow-GRPO's objective: one ratio per image, of the mean log-ratio; no map is used.

    The advantages of the clauses are added.
    """
    whole = log_ratio.mean(1, keepdim=True), advantage.sum(1, keepdim=True)
    return _bounded(*whole, clip_range, None if kl is None else kl.mean(1, keepdim=True))


def weighted_surrogate(
    log_ratio: Tensor,
    advantage: Tensor,
    weights: Tensor,
    clip_range: float,
    kl: Tensor | None = None,
) -> Surrogate:
    """Return the objective with one ratio per image and clause, ``exp(mean_p w_p d_p)``.

    Where the policy has not moved yet, its gradient is that of `local_surrogate` (D6). If locations
    are independent, its log-ratio spreads ``sqrt(mean_p w_p^2)`` times wider than the scalar one,
    so the clip range is multiplied by that (D4).
    """
    scaled_clip_range = clip_range * weights.square().mean(2).sqrt()  # (B, K)
    scaled_advantage = advantage * advantage.shape[1]  # the mean over clauses becomes their sum
    weighted = (weights * log_ratio[:, None]).mean(2)
    weighted_kl = None if kl is None else (weights * kl[:, None]).mean(2)
    return _bounded(weighted, scaled_advantage, scaled_clip_range, weighted_kl)


def local_surrogate(
    log_ratio: Tensor,
    advantage: Tensor,
    weights: Tensor,
    clip_range: float,
    kl: Tensor | None = None,
) -> Surrogate:
    """Return STAR's objective (arXiv 2606.17979; our reconstruction, D4): one ratio per location.

    ``A_{i,t,p} = sum_k A_{i,k} w_{i,t,k,p}`` multiplies the ratio of location ``p``; the loss is
    the mean over locations. Its log-ratio spreads ``sqrt(P)`` times wider (a patch averages fewer
    elements), so the clip range is multiplied by ``sqrt(P)``.
    """
    scaled_clip_range = clip_range * math.sqrt(log_ratio.shape[1])
    local = torch.einsum("bk,bkp->bp", advantage, weights)
    return _bounded(log_ratio, local, scaled_clip_range, kl)


SURROGATES: dict[str, Callable[[Tensor, Tensor, Tensor, float, Tensor | None], Surrogate]] = {
    "scalar": scalar_surrogate,
    "weighted": weighted_surrogate,
    "local": local_surrogate,
}


def _bounded(
    log_ratio: Tensor, advantage: Tensor, clip_range: float | Tensor, kl: Tensor | None
) -> Surrogate:
    """Clip ratios, or drop them by the KL, all of one shape; the loss is a mean over them."""
    if kl is None:
        return _clipped(log_ratio, advantage, clip_range)
    return _masked(log_ratio, advantage, kl)


def _masked(log_ratio: Tensor, advantage: Tensor, kl: Tensor) -> Surrogate:
    """Average ``-A r`` with 0 for what is dropped, by Flow-DPPO's mask (arXiv 2606.11025).

    Dropped is what is `KL_LIMIT` or more away and has moved with its advantage. A ratio that moved
    against it stays, and may come back.
    """
    ratio = log_ratio.exp()
    with_advantage = advantage * (ratio.detach() - 1) > 0
    dropped = with_advantage & (kl >= KL_LIMIT)
    loss = (-advantage * ratio).masked_fill(dropped, 0).mean()
    return Surrogate(loss, ratio.detach(), dropped.float().mean())


def _clipped(log_ratio: Tensor, advantage: Tensor, clip_range: float | Tensor) -> Surrogate:
    """Average ``max(-A r, -A clip(r))`` over rollouts and locations."""
    ratio = log_ratio.exp()
    epsilon = clip_range
    if not isinstance(epsilon, Tensor):  # filled there: a copy from the host would wait for a GPU
        epsilon = ratio.new_full((), epsilon)
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


def location_kl(transition: Transition, old_mean: Tensor, patch: int) -> Tensor:
    """Return the exact KL of a step from the old policy's, (B, P), without gradient.

    ``(mean - mean_old)^2 / (2 std^2)``, averaged over the elements of each location. Its size does
    not depend on how many elements that are, so one limit holds for locations and whole steps.

    Args:
        old_mean: (B, channels, height, width), as ``transition.mean``.
        patch: latent pixels along the side of a location.
    """
    moved = transition.mean.detach() - old_mean
    return patch_mean(moved.square(), patch) / (2 * transition.std**2)


def kl_penalty(
    transition: Transition, reference_mean: Tensor, form: str, factors: Tensor | None = None
) -> Tensor:
    """Return the KL of the step from the reference model's, averaged over elements: a scalar.

    ``exact``: ``(mean - mean_ref)^2 / (2 std^2)``. ``published``: as in Flow-GRPO's code, with
    `Transition.kl_std` in the place of ``std``.

    Args:
        factors: (B,), of the rollouts, as of `factors_without_zeros`; None are ones.
    """
    std = transition.std if form == "exact" else transition.kl_std
    squares = (transition.mean - reference_mean) ** 2
    if factors is not None:
        squares = squares * factors.view(-1, *[1] * (squares.dim() - 1))
    return squares.mean() / (2 * std**2)
