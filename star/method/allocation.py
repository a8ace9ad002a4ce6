"""From the attention on the core of a prompt to allocation maps of mean 1.

STAR (arXiv 2606.17979) spreads one group-relative advantage over locations and steps by such maps.
The normalisations are our reconstruction (docs/method.md, D2, D3, D5). Shapes: rollouts ``B``,
steps ``T``, clauses ``K`` (1 without clause-wise credit), locations ``P``, core tokens ``C``.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FLAT = 1e-4  # relative spread of a map that may be rounding of float32 (that of bf16 is larger)


def relevance_maps(
    mass: Tensor,
    token_weights: Tensor,
    normalise_tokens: bool = True,
    temporal: str = "per_step",
    smoothing: float = 0.0,
) -> Tensor:
    """Return one relevance map per step and clause from each core token's attention mass (D2).

    Args:
        mass: (B, T, P, C), probability that location ``p`` puts on core token ``c``; locations
            row-major on a square grid.
        token_weights: (B, K, C), at least 0; 0 marks what is not the clause's.
        normalise_tokens: divide each token's map by its own mean first, so that a small object's
            map survives a big one's.
        temporal: ``per_step``: that mean is over locations. ``joint``: over locations and steps, so
            that a step at which the core gets more attention keeps its lead.
        smoothing: sigma of a Gaussian filter, in locations; 0 for none (D3).

    Returns:
        (B, T, K, P), at least 0; 0 for a clause without tokens.
    """
    if normalise_tokens:
        mean_dims = (1, 2) if temporal == "joint" else (2,)
        mass = mass / mass.mean(mean_dims, keepdim=True).clamp_min(1e-12)
    weighed = torch.einsum("btpc,bkc->btkp", mass, token_weights)
    maps = weighed / token_weights.sum(2)[:, None, :, None].clamp_min(1e-12)
    return gaussian_smooth(maps, smoothing) if smoothing else maps


def controlled(relevance: Tensor, source: str, seed: int) -> Tensor:
    """Return the relevance maps of a control, (B, T, K, P), made from the rollouts' own.

    ``shuffled``: the locations of a rollout are permuted, the same way at all steps and clauses.
    Values and time order are kept; only positions change. ``time_averaged``: each step gets the
    mean over steps. Other sources keep their maps (`exchanged` serves ``other_rollout``).

    Args:
        seed: of the permutations.
    """
    if source == "shuffled":
        generator, locations = torch.Generator().manual_seed(seed), relevance.shape[3]
        order = torch.stack([torch.randperm(locations, generator=generator) for _ in relevance])
        return relevance.gather(3, order[:, None, None].to(relevance.device).expand_as(relevance))
    if source == "time_averaged":
        return relevance.mean(1, keepdim=True).expand_as(relevance)
    return relevance


def exchanged(maps: Tensor, prompts: Sequence[str], group_size: int) -> Tensor:
    """Give each rollout the maps of one with another prompt: the control ``other_rollout``.

    It takes the rollout with the same number from the nearest earlier group, cyclically, that has
    another prompt.

    Args:
        maps: (groups * group_size, ...), the rollouts of a group side by side.
        prompts: of the rollouts; at least two different ones.
    """
    of_groups = prompts[::group_size]
    count = len(of_groups)
    givers = [
        next(g for g in range(own - 1, own - count, -1) if of_groups[g] != of_groups[own])
        for own in range(count)
    ]
    return maps.unflatten(0, (count, group_size))[givers].flatten(0, 1)


def allocation_weights(
    relevance: Tensor, lam: float, temporal: str = "per_step", clause_maps: str = "share"
) -> Tensor:
    """Return allocation maps of mean 1, like ``relevance``: ``(1 + lam a) / mean(1 + lam a)``.

    ``a`` is the relevance, min-max scaled to [0, 1] (D3, D5). The mean is 1 so that the total
    advantage is conserved. A map whose differences are only rounding stays flat.

    Args:
        relevance: (B, T, K, P), of `relevance_maps`.
        lam: strength, at least 0; 0 gives maps of ones.
        temporal: minimum, maximum and mean are of each map (``per_step``), or of all steps of a
            rollout together (``joint``).
        clause_maps: ``share``: scale each clause's share of the relevance; ``own``: its own map.
    """
    dims = (1, 3) if temporal == "joint" else (3,)
    source = clause_shares(relevance) if clause_maps == "share" else relevance
    low, high = source.amin(dims, keepdim=True), source.amax(dims, keepdim=True)
    a = (source - low) / (high - low).clamp_min(FLAT * high + 1e-12)
    unscaled = 1 + lam * a
    return unscaled / unscaled.mean(dims, keepdim=True)


def clause_shares(relevance: Tensor) -> Tensor:
    """Return each clause's share, in [0, 1], of the relevance at a location: ours, not STAR's.

    A place that all clauses attend to equally gets equal weights. What remains shows which clause
    a place belongs to. A prompt of one clause keeps its map, so with one clause it is STAR.

    Args:
        relevance: (B, T, K, P); all 0 for clauses that a prompt does not have.
    """
    clauses = (relevance.sum((1, 3), keepdim=True) > 0).sum(2, keepdim=True)  # (B, 1, 1, 1)
    shares = relevance / relevance.sum(2, keepdim=True).clamp_min(1e-12)
    return torch.where(clauses > 1, shares, relevance)


def gaussian_smooth(maps: Tensor, sigma: float) -> Tensor:
    """Filter the square grid of the last axis; the filter's weights sum to 1 also at the border."""
    side = math.isqrt(maps.shape[-1])
    distance = torch.arange(side, dtype=maps.dtype, device=maps.device)
    kernel = torch.exp(-((distance[:, None] - distance[None, :]) ** 2) / (2 * sigma**2))
    kernel = kernel / kernel.sum(1, keepdim=True)  # (side, side): row i weighs the neighbours of i
    grid = maps.unflatten(-1, (side, side))
    return (kernel @ grid @ kernel.T).flatten(-2)


def normalised_entropy(weights: Tensor) -> Tensor:
    """Return the mean entropy of maps (..., P), as a share of a flat map's: a scalar in [0, 1]."""
    p = weights / weights.sum(-1, keepdim=True)
    return (torch.special.entr(p).sum(-1) / math.log(weights.shape[-1])).mean()
