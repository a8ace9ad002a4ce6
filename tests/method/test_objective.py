"""Advantages and surrogates: closed forms, the clip, and identity D6 of the Method section."""

import math

import pytest
import torch

from star.method.objective import (
    SURROGATES,
    group_advantages,
    kl_penalty,
    local_surrogate,
    patch_mean,
    scalar_surrogate,
    weighted_surrogate,
)
from star.method.sde import Transition


def test_advantages_by_hand():
    rewards = torch.tensor([0.0, 1.0, 0.5, 0.5])
    spread = rewards.std(correction=0) + 1e-4
    expected = torch.tensor([-0.5, 0.5, 0.0, 0.0]) / spread
    assert torch.allclose(group_advantages(rewards[:, None], 2, 5.0)[:, 0], expected)


def test_advantages_are_clipped_and_a_flat_batch_teaches_nothing():
    rewards = torch.zeros(400, 1)
    rewards[0] = 1.0
    assert group_advantages(rewards, 400, 5.0).max() == 5.0
    assert torch.equal(group_advantages(torch.full((8, 1), 0.7), 4, 5.0), torch.zeros(8, 1))


def test_clauses_have_their_own_group_mean_and_add_up_to_the_whole_advantage():
    shares = torch.rand(24, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    by_clause = group_advantages(shares, 8, 50.0)
    whole = group_advantages(shares.sum(1, keepdim=True), 8, 50.0)
    assert torch.allclose(by_clause.sum(1, keepdim=True), whole, atol=1e-12)
    assert torch.allclose(
        by_clause.view(3, 8, 3).mean(1), torch.zeros(3, 3, dtype=torch.float64), atol=1e-12
    )


def test_patch_mean_is_row_major_and_averages_channels():
    values = torch.arange(2 * 4 * 4, dtype=torch.float64).view(1, 2, 4, 4)
    expected = [values[0, :, y : y + 2, x : x + 2].mean() for y in (0, 2) for x in (0, 2)]
    assert torch.allclose(patch_mean(values, 2)[0], torch.stack(expected))


def gradient(loss, parameter):
    return torch.autograd.grad(loss, parameter, retain_graph=True)[0]


@pytest.fixture
def setting():
    """A toy policy: log-ratios of 6 rollouts at 16 locations, nonlinear in 5 parameters, and 2
    clauses, in float64."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    features = torch.randn(6, 16, 5, generator=generator, dtype=torch.float64)
    advantage = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    weights = torch.rand(6, 2, 16, generator=generator, dtype=torch.float64) + 0.1
    weights = weights / weights.mean(2, keepdim=True)
    log_prob = torch.sin(features @ theta)
    return theta, log_prob - log_prob.detach(), advantage, weights


def test_identity_d6_uniform_weights(setting):
    theta, log_ratio, advantage, weights = setting
    gradients = [
        gradient(s(log_ratio, advantage, torch.ones_like(weights), 1e-2).loss, theta)
        for s in SURROGATES.values()
    ]
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6 * gradients[0].abs().max().item())
    assert torch.allclose(gradients[0], gradients[2], atol=1e-6 * gradients[0].abs().max().item())


def test_identity_d6_any_weights(setting):
    """At theta_old: the gradient of the weighted scalar ratio exp(mean_p w_p (l_p - l_old_p)),
    summed over clauses."""
    theta, log_ratio, advantage, weights = setting
    expected = -(advantage * (weights * log_ratio[:, None]).mean(2).exp()).sum(1).mean()
    for surrogate in (local_surrogate, weighted_surrogate):
        assert torch.allclose(
            gradient(surrogate(log_ratio, advantage, weights, 1e-2).loss, theta),
            gradient(expected, theta),
            atol=1e-12,
        )


def test_clauses_with_one_map_are_that_map_with_the_whole_advantage(setting):
    _, log_ratio, advantage, weights = setting
    same = weights[:, :1].expand(-1, 2, -1)
    moved = log_ratio + 0.01
    together = local_surrogate(moved, advantage.sum(1, keepdim=True), weights[:, :1], 1e-2)
    assert torch.allclose(
        local_surrogate(moved, advantage, same, 1e-2).loss, together.loss, atol=1e-12
    )


def test_a_clause_without_advantage_has_no_say(setting):
    theta, log_ratio, advantage, weights = setting
    padded = torch.cat([advantage, torch.zeros(6, 1, dtype=torch.float64)], dim=1)
    wider = torch.cat([weights, torch.rand(6, 1, 16, dtype=torch.float64)], dim=1)
    for surrogate in SURROGATES.values():
        pair = [
            surrogate(log_ratio, a, w, 1e-2).loss
            for a, w in ((advantage, weights), (padded, wider))
        ]
        assert torch.allclose(gradient(pair[0], theta), gradient(pair[1], theta), atol=1e-12)


def test_first_ratio_is_exactly_one(setting):
    _, log_ratio, advantage, weights = setting
    for surrogate in SURROGATES.values():
        ratio = surrogate(log_ratio, advantage, weights, 1e-4).ratio
        assert torch.equal(ratio, torch.ones_like(ratio))


@pytest.mark.parametrize(
    ("advantage", "log_ratio", "expected"), [(1, 0.5, -1.2), (1, -0.5, -math.exp(-0.5))]
)
def test_clip_binds_only_where_the_policy_already_moved_the_right_way(
    advantage, log_ratio, expected
):
    moved = torch.full((1, 4), log_ratio, dtype=torch.float64)
    one = torch.tensor([[float(advantage)]], dtype=torch.float64)
    for surrogate in (scalar_surrogate, weighted_surrogate):
        found = surrogate(moved, one, torch.ones(1, 1, 4, dtype=torch.float64), 0.2)
        assert found.loss.item() == pytest.approx(expected)
        assert found.clipped.item() == 1.0


def test_local_clip_range_grows_with_the_square_root_of_the_locations():
    one, ones = torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1, 16, dtype=torch.float64)
    for moved, clipped in ((0.039, 0.0), (0.041, 1.0)):
        log_ratio = torch.full((1, 16), math.log(1 + moved), dtype=torch.float64)
        assert local_surrogate(log_ratio, one, ones, 0.01).clipped.item() == clipped


@pytest.mark.parametrize("surrogate", [weighted_surrogate, local_surrogate])
def test_the_clip_range_follows_the_spread_of_the_log_ratio(surrogate):
    """Independent locations of equal spread: as large a share is clipped as of the scalar ratio,
    whatever the map."""
    generator = torch.Generator().manual_seed(1)
    log_ratio = 1e-3 * torch.randn(4000, 64, generator=generator, dtype=torch.float64)
    weights = 1 + 9 * torch.rand(4000, 1, 64, generator=generator, dtype=torch.float64) ** 8
    weights = weights / weights.mean(2, keepdim=True)
    one = torch.ones(4000, 1, dtype=torch.float64)
    clip = 1e-3 / 8  # one standard deviation of the scalar log-ratio
    wanted = scalar_surrogate(log_ratio, one, weights, clip).clipped.item()
    assert surrogate(log_ratio, one, weights, clip).clipped.item() == pytest.approx(
        wanted, abs=0.02
    )


def test_kl_forms():
    mean = torch.tensor([[0.3, 0.1]], dtype=torch.float64)
    transition, reference = Transition(mean, noise_scale=0.5, step=0.1), mean - 0.2
    normal = [torch.distributions.Normal(m, transition.deviation) for m in (mean, reference)]
    exact = torch.distributions.kl_divergence(*normal).mean()
    assert kl_penalty(transition, reference, "exact").item() == pytest.approx(exact.item())
    assert kl_penalty(transition, reference, "published").item() == pytest.approx(
        exact.item() * 0.1
    )
