"""From the attention that image tokens pay to the core of the prompt to unit-mean allocation maps.

STAR (arXiv 2606.17979) allocates one group-relative advantage over locations and steps by such
maps; the normalisations are our reconstruction (README, Method, D2, D3, D5). Shapes: rollouts
``B``, steps ``T``, clauses ``K`` (1 where clauses are not told apart), locations ``P``, core tokens
``C``."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FLAT = (
    1e-4  # relative spread of a map up to which it is rounding of float32 (that of bf16 is larger)
)


def relevance_maps(
    mass: Tensor,
    token_weights: Tensor,
    normalise_tokens: bool = True,
    temporal: str = "per_step",
    smoothing: float = 0.0,
) -> Tensor:
    """Attention mass per core token -> one relevance map a step and clause (D2), optionally
    smoothed (D3).

    With ``normalise_tokens`` each token's map is divided by its own mean first, so that a small
    object's map survives a big one's: the mean over locations or, where ``temporal`` is ``joint``,
    over locations and steps, so that a step at which more is looked at the core keeps its lead.

    Args:
        mass: (B, T, P, C), probability that location ``p`` puts on core token ``c``; locations
            row-major on a square grid.
        token_weights: (B, K, C), at least 0; 0 marks what is not the clause's.
        normalise_tokens: divide each token's map by its mean.
        temporal: ``per_step`` or ``joint``.
        smoothing: sigma of a Gaussian filter, in locations; 0 for none.

    Returns:
        (B, T, K, P), at least 0, with ``normalise_tokens`` of mean 1 over what each token was
        divided by the mean of; 0 for a clause without tokens.
    """
    if normalise_tokens:
        over = (1, 2) if temporal == "joint" else (2,)
        mass = mass / mass.mean(over, keepdim=True).clamp_min(1e-12)
    weighed = torch.einsum("btpc,bkc->btkp", mass, token_weights)
    maps = weighed / token_weights.sum(2)[:, None, :, None].clamp_min(1e-12)
    return gaussian_smooth(maps, smoothing) if smoothing else maps


def controlled(relevance: Tensor, source: str, seed: int) -> Tensor:
    """The relevance maps of a control, made from those of the rollouts (README, Method, controls).

    ``shuffled``: each rollout's locations are permuted, alike at all its steps and clauses: time
    and values stay, place is lost. ``time_averaged``: the mean over the steps at each of them.
    Other sources keep their maps (those of ``other_rollout`` have been exchanged by `exchanged`).

    Args:
        relevance: (B, T, K, P).
        seed: of the permutations.
    """
    if source == "shuffled":
        generator = torch.Generator().manual_seed(seed)
        order = torch.stack(
            [torch.randperm(relevance.shape[3], generator=generator) for _ in relevance]
        )
        return relevance.gather(3, order[:, None, None].to(relevance.device).expand_as(relevance))
    if source == "time_averaged":
        return relevance.mean(1, keepdim=True).expand_as(relevance)
    return relevance


def exchanged(maps: Tensor, prompts: Sequence[str], group_size: int) -> Tensor:
    """The control ``other_rollout``: each rollout gets the maps of one with another prompt.

    That is the rollout of its number in the group before, or in the last one before that whose
    prompt is another.

    Args:
        maps: of an epoch's rollouts, those of a group side by side, (groups * group_size, ...).
        prompts: of the rollouts, two different ones at least
    (`star.training.batches.check_other_prompts`)."""
    of_groups = prompts[::group_size]
    count = len(of_groups)
    givers = [
        next(
            giver
            for giver in range(group - 1, group - count, -1)
            if of_groups[giver] != of_groups[group]
        )
        for group in range(count)
    ]
    return maps.unflatten(0, (count, group_size))[givers].flatten(0, 1)


def allocation_weights(
    relevance: Tensor, lam: float, temporal: str = "per_step", clause_maps: str = "share"
) -> Tensor:
    """Relevance maps -> allocation maps of mean 1 (D3, D5): ``w = (1 + lam a) / mean(1 + lam a)``.

    ``a`` is the relevance, min-max scaled per map, or over all steps of a rollout where
    ``temporal`` is ``joint``; the mean is taken alike. Of several clauses it is each one's share
    where ``clause_maps`` is ``share``. A map that is flat but for rounding stays flat.

    Args:
        relevance: (B, T, K, P), of `relevance_maps`.
        lam: strength, at least 0; 0 gives flat maps.
        temporal: ``per_step`` or ``joint``.
        clause_maps: ``share`` or ``own``.
    """
    over = (1, 3) if temporal == "joint" else (3,)
    compared = clause_shares(relevance) if clause_maps == "share" else relevance
    low, high = compared.amin(over, keepdim=True), compared.amax(over, keepdim=True)
    a = (compared - low) / (high - low).clamp_min(FLAT * high + 1e-12)
    raised = 1 + lam * a
    return raised / raised.mean(over, keepdim=True)


def clause_shares(relevance: Tensor) -> Tensor:
    """Of each clause, its share of the relevance that all clauses of the prompt have at a location:
    ours, not STAR's.

    Places that every clause, or none, attends to then weigh alike for all; what is left says whose
    a place is. A prompt of one clause keeps its map: with one clause it is STAR.

    Args:
        relevance: (B, T, K, P); all 0 for clauses that a prompt does not have.

    Returns:
        Like ``relevance``, in [0, 1] where there are several clauses.
    """
    clauses = (relevance.sum((1, 3), keepdim=True) > 0).sum(2, keepdim=True)  # (B, 1, 1, 1)
    return torch.where(
        clauses > 1, relevance / relevance.sum(2, keepdim=True).clamp_min(1e-12), relevance
    )


def gaussian_smooth(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian filter over the square grid of the last axis; weights are renormalised at the
    border."""
    side = math.isqrt(maps.shape[-1])
    distance = torch.arange(side, dtype=maps.dtype, device=maps.device)
    kernel = torch.exp(-((distance[:, None] - distance[None, :]) ** 2) / (2 * sigma**2))
    kernel = kernel / kernel.sum(1, keepdim=True)  # (side, side): row i weighs the neighbours of i
    grid = maps.unflatten(-1, (side, side))
    return (kernel @ grid @ kernel.T).flatten(-2)


def normalised_entropy(weights: Tensor) -> Tensor:
    """Entropy of the maps as distributions over locations, divided by that of a flat one: in [0,
    1], mean over maps."""
    p = weights / weights.sum(-1, keepdim=True)
    return (torch.special.entr(p).sum(-1) / math.log(weights.shape[-1])).mean()
