"""Allocation maps: unit mean, lam = 0, per-token normalisation, smoothing, entropy."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from star.allocation import allocation_weights, gaussian_smooth, normalised_entropy, relevance_map


def relevance(seed=0, shape=(3, 4, 16)):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), lam=st.floats(0, 50), smoothing=st.sampled_from([0.0, 0.7, 2.0]))
def test_unit_mean_and_positive(seed, lam, smoothing):
    per_step = allocation_weights(relevance(seed), lam, smoothing, "per_step")
    joint = allocation_weights(relevance(seed), lam, smoothing, "joint")
    assert torch.allclose(per_step.mean(2), torch.ones(3, 4, dtype=torch.float64))
    assert torch.allclose(joint.mean((1, 2)), torch.ones(3, dtype=torch.float64))
    assert (per_step > 0).all() and (joint > 0).all()


def test_by_hand():
    maps = torch.tensor([[[0.0, 1.0, 0.5, 0.5]]], dtype=torch.float64)
    weights = allocation_weights(maps, 2.0, 0.0, "per_step")
    assert torch.allclose(weights, torch.tensor([[[1.0, 3.0, 2.0, 2.0]]], dtype=torch.float64) / 2)


@pytest.mark.parametrize("temporal", ["per_step", "joint"])
def test_no_strength_and_a_flat_map_give_ones(temporal):
    ones = torch.ones(3, 4, 16, dtype=torch.float64)
    assert torch.equal(allocation_weights(relevance(), 0.0, 0.0, temporal), ones)
    assert torch.allclose(allocation_weights(ones * 0.3, 5.0, 0.0, temporal), ones)


def test_a_small_object_survives_a_big_one():
    """Two tokens with masses of different size and the same shape of peak count alike."""
    mass = torch.full((1, 4, 2), 1e-4, dtype=torch.float64)
    mass[0, 0, 0], mass[0, 1, 1] = 0.5, 0.005
    mass[0, 1:, 0], mass[0, [0, 2, 3], 1] = 0.05, 0.0005
    both = relevance_map(mass, torch.ones(1, 2, dtype=torch.float64))
    assert both[0, 0].item() == pytest.approx(both[0, 1].item())
    assert both.mean().item() == pytest.approx(1.0)


def test_padding_tokens_have_no_say():
    mass = relevance(1, (2, 16, 3))
    weight = torch.tensor([[1.0, 0.5, 0.0], [1.0, 0.5, 0.0]], dtype=torch.float64)
    other = mass.clone()
    other[:, :, 2] = 7.0
    assert torch.equal(relevance_map(mass, weight), relevance_map(other, weight))


def test_smoothing_spreads_a_peak_and_keeps_a_flat_map():
    peak = torch.zeros(1, 1, 25, dtype=torch.float64)
    peak[0, 0, 12] = 1
    smooth = gaussian_smooth(peak, 1.0).view(5, 5)
    assert smooth.argmax() == 12 and smooth[2, 1] == smooth[1, 2] == smooth[2, 3] > smooth[1, 1] > 0
    assert torch.allclose(gaussian_smooth(torch.ones_like(peak), 1.0), torch.ones_like(peak))


def test_entropy_of_a_flat_map_is_one_and_of_a_point_zero():
    point = torch.zeros(1, 16)
    point[0, 3] = 16
    assert normalised_entropy(torch.ones(1, 16)).item() == pytest.approx(1.0)
    assert normalised_entropy(point).item() == pytest.approx(0.0)
