"""Allocation maps: mean 1, lam = 0, tokens, clauses, controls, smoothing, entropy."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from star.method.allocation import (
    allocation_weights,
    clause_shares,
    controlled,
    exchanged,
    gaussian_smooth,
    normalised_entropy,
    relevance_maps,
)


def exactly(values):
    return torch.tensor(values, dtype=torch.float64)


def relevance(seed=0, shape=(3, 4, 2, 16)):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights_of(maps, lam=4.0, temporal="per_step", clause_maps="own"):
    return allocation_weights(maps, lam, temporal, clause_maps)


def maps_of(mass, token_weights, **changes):
    """Relevance maps (B, K, P) of the masses of one step, (B, P, C)."""
    return relevance_maps(mass[:, None], token_weights, **changes)[:, 0]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), lam=st.floats(0, 50))
def test_mean_one_and_positive(seed, lam):
    per_step, joint = (weights_of(relevance(seed), lam, way) for way in ("per_step", "joint"))
    assert torch.allclose(per_step.mean(3), torch.ones(3, 4, 2, dtype=torch.float64))
    assert torch.allclose(joint.mean((1, 3)), torch.ones(3, 2, dtype=torch.float64))
    assert (per_step > 0).all() and (joint > 0).all()


@pytest.mark.parametrize(
    ("temporal", "maps", "weights"),
    [  # of two steps, two locations each
        ("per_step", [[0.0, 1.0], [0.5, 1.5]], [[0.5, 1.5], [0.5, 1.5]]),
        ("joint", [[0.0, 0.5], [0.5, 1.0]], [[0.5, 1.0], [1.0, 1.5]]),
    ],
)
def test_by_hand(temporal, maps, weights):
    found = weights_of(exactly(maps)[None, :, None], lam=2.0, temporal=temporal)
    assert torch.allclose(found[0, :, 0], exactly(weights))


@pytest.mark.parametrize("normalise", [True, False])
def test_joint_gives_more_to_the_step_at_which_the_core_gets_more_attention(normalise):
    """From the mass on: tokens made equal within a step must not make the steps equal."""
    mass = relevance(6, (1, 1, 16, 3)) * exactly([1.0, 2.0, 4.0])[None, :, None, None]
    maps = relevance_maps(mass, torch.ones(1, 1, 3, dtype=torch.float64), normalise, "joint")
    assert torch.allclose(maps[0, 1], 2 * maps[0, 0]) and torch.allclose(maps[0, 2], 4 * maps[0, 0])
    first, second, third = weights_of(maps, temporal="joint").mean(3).flatten().tolist()
    assert first < second < third
    assert not normalise or maps.mean().item() == pytest.approx(1.0)


@pytest.mark.parametrize("temporal", ["per_step", "joint"])
def test_no_strength_and_a_flat_map_give_ones(temporal):
    ones = torch.ones(3, 4, 2, 16, dtype=torch.float64)
    assert torch.equal(weights_of(relevance(), lam=0.0, temporal=temporal), ones)
    assert torch.allclose(weights_of(ones * 0.3, lam=5.0, temporal=temporal), ones)


def small_and_big():
    """Masses of two tokens, (1, 4, 2): peaks of one shape and different size, at other places."""
    mass = exactly([[0.5, 0.0005], [0.05, 0.005], [0.05, 0.0005], [0.05, 0.0005]])
    return mass[None]


def test_a_small_object_survives_a_big_one_if_tokens_are_normalised():
    ones = torch.ones(1, 1, 2, dtype=torch.float64)
    both = maps_of(small_and_big(), ones, normalise_tokens=True)[0, 0]
    assert both[0].item() == pytest.approx(both[1].item())
    assert both.mean().item() == pytest.approx(1.0)
    raw = maps_of(small_and_big(), ones, normalise_tokens=False)[0, 0]
    assert raw[0] > 9 * raw[1]


def test_each_clause_reads_its_own_tokens_and_one_without_tokens_is_uniform():
    maps = maps_of(small_and_big(), exactly([[[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]]))[0]
    assert maps[0].argmax() == 0 and maps[1].argmax() == 1 and not maps[2].any()
    assert torch.equal(weights_of(maps[None, None])[0, 0, 2], torch.ones(4, dtype=torch.float64))


def test_shares_of_clauses_by_hand():
    """The prompt has two of three clauses."""
    maps = torch.tensor([[3.0, 2.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])[None, None]
    shares = torch.tensor([[0.75, 0.5, 0.0], [0.25, 0.5, 0.0], [0.0, 0.0, 0.0]])
    assert torch.equal(clause_shares(maps)[0, 0], shares)
    first, _, missing = weights_of(maps, clause_maps="share", lam=2.0)[0, 0]
    assert torch.allclose(first, torch.tensor([3.0, 7 / 3, 1.0]) * 9 / 19)  # a = 1, 2/3, 0
    assert torch.equal(missing, torch.ones(3))


def test_shares_are_the_map_itself_where_there_is_one_clause():
    maps = relevance(7)
    maps[:2, :, 1] = 0
    own, share = weights_of(maps), weights_of(maps, clause_maps="share")
    assert torch.equal(own[:2], share[:2]) and not torch.allclose(own[2], share[2])


def test_clauses_that_attend_alike_get_no_map_of_their_own():
    """Their shares differ by rounding alone, which min-max scaling must not blow up to a map."""
    one = relevance(8, (3, 4, 1, 16)).float()
    alike = one.expand(-1, -1, 3, -1) * torch.tensor([1.0, 0.7, 1.3])[:, None]
    assert torch.allclose(weights_of(alike, clause_maps="share"), torch.ones(1), atol=1e-2)


def test_padding_tokens_have_no_say():
    mass, weight = relevance(1, (2, 16, 3)), exactly([[[1.0, 0.5, 0.0]]]).expand(2, -1, -1)
    other = mass.clone()
    other[:, :, 2] = 7.0
    assert torch.equal(maps_of(mass, weight), maps_of(other, weight))


def test_shuffled_maps_keep_values_and_time_and_lose_the_place():
    maps = relevance(2)
    shuffled = controlled(maps, "shuffled", seed=5)
    assert torch.equal(shuffled.sort(dim=3).values, maps.sort(dim=3).values)
    moved_to = [(maps[0, 0, 0] == value).nonzero().item() for value in shuffled[0, 0, 0]]
    assert moved_to != sorted(moved_to)
    assert torch.equal(shuffled[0], maps[0][:, :, moved_to]), "alike at all steps and clauses"
    assert torch.equal(shuffled, controlled(maps, "shuffled", seed=5))
    assert not torch.equal(shuffled, controlled(maps, "shuffled", seed=6))


@pytest.mark.parametrize(
    ("groups", "givers"),
    [
        ("abc", [2, 0, 1]),
        ("aab", [2, 2, 1]),  # a group before with the same prompt is skipped
        ("abba", [2, 0, 0, 2]),
        ("aaab", [3, 3, 3, 2]),
    ],
)
def test_maps_of_another_rollout_are_of_the_last_group_before_with_another_prompt(groups, givers):
    maps = relevance(3, (2 * len(groups), 2, 1, 16))
    moved = exchanged(maps, [prompt for prompt in groups for _ in range(2)], group_size=2)
    assert torch.equal(moved, maps.unflatten(0, (-1, 2))[givers].flatten(0, 1))


def test_time_averaged_maps_are_the_mean_over_steps():
    averaged = controlled(relevance(4), "time_averaged", 0)
    assert torch.allclose(averaged, relevance(4).mean(1, keepdim=True).expand_as(averaged))


@pytest.mark.parametrize("source", ["attention", "random_tokens", "guidance"])
def test_other_sources_keep_their_maps(source):
    assert torch.equal(controlled(relevance(5), source, 0), relevance(5))


def test_smoothing_spreads_a_peak_and_keeps_a_flat_map():
    peak = torch.zeros(1, 1, 25, dtype=torch.float64)
    peak[0, 0, 12] = 1
    smooth = gaussian_smooth(peak, 1.0).view(5, 5)
    assert smooth.argmax() == 12 and smooth[2, 1] == smooth[1, 2] == smooth[2, 3] > smooth[1, 1] > 0
    assert torch.allclose(gaussian_smooth(torch.ones_like(peak), 1.0), torch.ones_like(peak))
    mass, token = relevance(7, (1, 1, 16, 1)), torch.ones(1, 1, 1, dtype=torch.float64)
    smoothed = relevance_maps(mass, token, smoothing=1.0)
    assert torch.allclose(smoothed, gaussian_smooth(relevance_maps(mass, token), 1.0))


def test_entropy_of_a_flat_map_is_one_and_of_a_point_zero():
    flat = torch.ones(1, 16)
    assert normalised_entropy(flat).item() == pytest.approx(1.0)
    assert normalised_entropy(16 * torch.eye(16)[3:4]).item() == pytest.approx(0.0)
