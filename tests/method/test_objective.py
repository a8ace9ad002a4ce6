"""Advantages and surrogates: closed forms, the clip, and identity D6 of the Method section."""

import math

import pytest
import torch

from star.method.objective import (
    KL_LIMIT,
    SURROGATES,
    factors_without_zeros,
    group_advantages,
    kl_penalty,
    local_surrogate,
    location_kl,
    noise_weights,
    patch_mean,
    scalar_surrogate,
    weighted_surrogate,
)
from star.method.sde import FlowSDE, Transition, log_ratio


def test_advantages_by_hand():
    rewards = torch.tensor([0.0, 1.0, 0.5, 0.5])
    expected = torch.tensor([-0.5, 0.5, 0.0, 0.0]) / (rewards.std(correction=0) + 1e-4)
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
    assert by_clause.view(3, 8, 3).mean(1).abs().max() < 1e-12


def test_without_zeros_the_factors_make_the_mean_over_all_that_over_the_kept():
    """Update by update: two of four are kept, by a clause alone; all but one; none."""
    rows = [[1, 0], [1, 1], [1, 0.5], [1, 0.5], [0, 1], [0, 1], [3, 1], [1, 1], *[[0.3, 0.7]] * 4]
    found = factors_without_zeros(torch.tensor(rows), 4, 3)
    assert torch.allclose(found, torch.tensor([2, 2, 0, 0, *[4 / 3] * 3, *[0.0] * 5]))


def test_a_group_of_equal_rewards_is_dropped_however_small_the_spread():
    """All but one image are right, and two groups equally wrong: their advantages are rounded."""
    rewards = torch.ones(48 * 24, 1)
    rewards[24:72], rewards[0] = 1 - 2 / 7, 0.9
    assert 1e-6 < group_advantages(rewards, 24, 5.0)[24:72].abs().min() < 1e-5
    assert factors_without_zeros(rewards, 24, 1).tolist() == [48.0] * 24 + [0.0] * 24 * 47


@pytest.mark.parametrize("name", SURROGATES)
def test_factors_make_the_loss_and_the_kl_those_of_the_kept_alone(setting, name):
    _, _, advantage, weights = setting
    log_ratio = 1e-2 * torch.sin(torch.arange(96.0, dtype=torch.float64)).view(6, 16)
    kept = [0, 2, 3]
    advantage = advantage.clone()
    advantage[[1, 4, 5]] = 0
    factors = torch.tensor([2.0, 0, 2, 2, 0, 0], dtype=torch.float64)
    alone = SURROGATES[name](log_ratio[kept], advantage[kept], weights[kept], 1e-3).loss
    found = SURROGATES[name](log_ratio, advantage * factors[:, None], weights, 1e-3).loss
    assert found.item() == pytest.approx(alone.item(), rel=1e-12)
    mean, reference = log_ratio.view(6, 1, 4, 4), torch.zeros(6, 1, 4, 4)
    whole, part = (Transition(m, 0.5, kl_std=1.0) for m in (mean, mean[kept]))
    expected = kl_penalty(part, reference[kept], "exact").item()
    assert kl_penalty(whole, reference, "exact", factors).item() == pytest.approx(expected)


def test_patch_mean_is_row_major_and_averages_channels():
    values = torch.arange(2 * 4 * 4, dtype=torch.float64).view(1, 2, 4, 4)
    expected = [values[0, :, y : y + 2, x : x + 2].mean() for y in (0, 2) for x in (0, 2)]
    assert torch.allclose(patch_mean(values, 2)[0], torch.stack(expected))


def gradient(loss, parameter):
    return torch.autograd.grad(loss, parameter, retain_graph=True)[0]


@pytest.fixture
def setting():
    """A toy policy in float64: 6 rollouts at 16 locations, nonlinear in 5 parameters, 2 clauses."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    features = torch.randn(6, 16, 5, generator=generator, dtype=torch.float64)
    advantage = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    weights = torch.rand(6, 2, 16, generator=generator, dtype=torch.float64) + 0.1
    log_prob = torch.sin(features @ theta)
    return theta, log_prob - log_prob.detach(), advantage, weights / weights.mean(2, keepdim=True)


def test_identity_d6_uniform_weights(setting):
    """At theta_old all objectives have the gradient of the scalar one where w = 1."""
    theta, log_ratio, advantage, weights = setting
    ones = torch.ones_like(weights)
    scalar = gradient(scalar_surrogate(log_ratio, advantage, ones, 1e-2).loss, theta)
    for surrogate in (weighted_surrogate, local_surrogate):
        found = gradient(surrogate(log_ratio, advantage, ones, 1e-2).loss, theta)
        assert torch.allclose(found, scalar, atol=1e-12)


def test_identity_d6_any_weights(setting):
    """At theta_old it is that of the weighted scalar ratio exp(mean_p w_p d_p), over clauses."""
    theta, log_ratio, advantage, weights = setting
    ratio = (weights * log_ratio[:, None]).mean(2).exp()
    expected = gradient(-(advantage * ratio).sum(1).mean(), theta)
    for surrogate in (weighted_surrogate, local_surrogate):
        found = gradient(surrogate(log_ratio, advantage, weights, 1e-2).loss, theta)
        assert torch.allclose(found, expected, atol=1e-12)
    uniform = gradient(scalar_surrogate(log_ratio, advantage, weights, 1e-2).loss, theta)
    assert not torch.allclose(uniform, expected, rtol=1e-2)


def test_clauses_with_one_map_are_that_map_with_the_whole_advantage(setting):
    _, log_ratio, advantage, weights = setting
    one, moved = weights[:, :1], log_ratio + 0.01
    apart = local_surrogate(moved, advantage, one.expand(-1, 2, -1), 1e-2).loss
    together = local_surrogate(moved, advantage.sum(1, keepdim=True), one, 1e-2).loss
    assert torch.allclose(apart, together, atol=1e-12)


@pytest.mark.parametrize("name", SURROGATES)
def test_a_clause_without_advantage_has_no_say(setting, name):
    theta, log_ratio, advantage, weights = setting
    wider = (
        torch.cat([advantage, torch.zeros(6, 1)], dim=1),
        torch.cat([weights, weights[:, :1]], 1),
    )
    losses = [
        SURROGATES[name](log_ratio, *given, 1e-2).loss for given in ((advantage, weights), wider)
    ]
    assert torch.allclose(*(gradient(loss, theta) for loss in losses), atol=1e-12)


@pytest.mark.parametrize("name", SURROGATES)
def test_first_ratio_is_exactly_one(setting, name):
    ratio = SURROGATES[name](*setting[1:], 1e-4).ratio
    assert torch.equal(ratio, torch.ones_like(ratio))


def constant(log_ratio, locations):
    """Log-ratio, advantage and map of one rollout, all locations alike."""
    ones = torch.ones(1, 1, dtype=torch.float64)
    return log_ratio * ones.expand(1, locations), ones, ones[:, None].expand(1, 1, locations)


@pytest.mark.parametrize(("log_ratio", "expected"), [(0.5, -1.2), (-0.5, -math.exp(-0.5))])
@pytest.mark.parametrize("surrogate", [scalar_surrogate, weighted_surrogate])
def test_clip_binds_only_where_the_policy_already_moved_the_right_way(
    surrogate, log_ratio, expected
):
    found = surrogate(*constant(log_ratio, 4), 0.2)
    assert found.loss.item() == pytest.approx(expected) and found.clipped.item() == 1.0


@pytest.mark.parametrize(("moved", "clipped"), [(0.039, 0.0), (0.041, 1.0)])
def test_local_clip_range_grows_with_the_square_root_of_the_locations(moved, clipped):
    assert local_surrogate(*constant(math.log(1 + moved), 16), 0.01).clipped.item() == clipped


@pytest.mark.parametrize("surrogate", [weighted_surrogate, local_surrogate])
def test_the_clip_range_follows_the_spread_of_the_log_ratio(surrogate):
    """Of independent locations as large a share is clipped as of the scalar ratio."""
    generator = torch.Generator().manual_seed(1)
    log_ratio = 1e-3 * torch.randn(4000, 64, generator=generator, dtype=torch.float64)
    weights = 1 + 9 * torch.rand(4000, 1, 64, generator=generator, dtype=torch.float64) ** 8
    weights = weights / weights.mean(2, keepdim=True)
    given = log_ratio, torch.ones(4000, 1, dtype=torch.float64), weights
    clip = 1e-3 / 8  # one standard deviation of the scalar log-ratio
    wanted = scalar_surrogate(*given, clip).clipped.item()
    assert surrogate(*given, clip).clipped.item() == pytest.approx(wanted, abs=0.02)


@pytest.mark.parametrize("kl", [0.99 * KL_LIMIT, KL_LIMIT])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("moved", [0.5, -0.5])
@pytest.mark.parametrize("name", SURROGATES)
def test_the_kl_mask_drops_what_went_too_far_with_its_advantage(name, moved, advantage, kl):
    """Whatever the ratio; all else has the gradient of -A r."""
    log_ratio, ones, weights = constant(moved, 4)
    log_ratio = log_ratio.clone().requires_grad_()
    given = advantage * ones, weights, 1e-4, torch.full((1, 4), kl, dtype=torch.float64)
    found = SURROGATES[name](log_ratio, *given)
    dropped = moved * advantage > 0 and kl >= KL_LIMIT
    assert found.clipped.item() == dropped
    kept = 0.0 if dropped else -advantage * math.exp(moved)
    assert found.loss.item() == pytest.approx(kept)
    assert gradient(found.loss, log_ratio).sum().item() == pytest.approx(kept)


def test_the_kl_mask_is_of_a_location_or_of_a_step_with_its_map():
    log_ratio, advantage, ones = constant(0.1, 4)
    kl = KL_LIMIT * torch.tensor([[3.9, 0, 0, 0]], dtype=torch.float64)
    weights = torch.tensor([[[1.2, 0.8, 1, 1]]], dtype=torch.float64)
    given = log_ratio, advantage
    assert scalar_surrogate(*given, ones, 1e-4, kl).clipped.item() == 0.0
    assert weighted_surrogate(*given, ones, 1e-4, kl).clipped.item() == 0.0
    assert weighted_surrogate(*given, weights, 1e-4, kl).clipped.item() == 1.0
    assert local_surrogate(*given, ones, 1e-4, kl).clipped.item() == 0.25
    assert scalar_surrogate(*given, ones, 1e-4, kl * 1.1).clipped.item() == 1.0


@pytest.mark.parametrize("size", [1, 4])
def test_the_kl_of_a_location_is_that_of_normal_densities_and_no_larger_with_its_size(size):
    mean, old = torch.randn(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    transition = Transition(mean.requires_grad_(), 0.3, kl_std=1.0)
    normal = [torch.distributions.Normal(m.detach(), 0.3) for m in (mean, old)]
    expected = patch_mean(torch.distributions.kl_divergence(*normal), size)
    found = location_kl(transition, old, size)
    assert torch.allclose(found, expected, rtol=1e-5) and not found.requires_grad
    even = location_kl(transition, mean.detach() - 0.1, size)
    assert torch.allclose(even, torch.full_like(even, 0.01 / 0.18), rtol=1e-5)


def test_noise_weights_have_mean_one_and_make_the_gradient_go_as_the_length_of_a_step():
    """Of Flow-GRPO's SDE, in the velocity; without them it goes as sqrt(dt (1-s) / s)."""
    assert noise_weights([0.25, 0.75]) == [0.5, 1.5]
    sigmas, x = (0.9, 0.8, 0.5, 0.1), torch.ones(1, dtype=torch.float64)
    sampler, lengths = FlowSDE(sigmas, 0.7), [0.1, 0.3, 0.4]
    steps, slopes = [], []
    for t in range(3):
        velocity = x.clone().requires_grad_()
        steps.append(sampler.transition(x, velocity, t))
        old = steps[t].mean.detach()
        ratio = log_ratio(old - steps[t].std, steps[t], old, normalised=False)  # of noise -1
        slopes.append(gradient(ratio, velocity).item())
    weighted = [w * s for w, s in zip(noise_weights([s.std for s in steps]), slopes, strict=True)]
    for found, size in (
        (weighted, lengths),
        (slopes, [math.sqrt(d * (1 - s) / s) for d, s in zip(lengths, sigmas, strict=False)]),
    ):
        expected = [found[0] * length / size[0] for length in size]
        assert found == pytest.approx(expected, rel=1e-12)


def test_kl_forms():
    mean = torch.tensor([[0.3, 0.1]], dtype=torch.float64)
    transition, reference = Transition(mean, 0.5 * math.sqrt(0.1), kl_std=0.5), mean - 0.2
    normal = [torch.distributions.Normal(m, transition.std) for m in (mean, reference)]
    exact = torch.distributions.kl_divergence(*normal).mean().item()
    assert kl_penalty(transition, reference, "exact").item() == pytest.approx(exact)
    assert kl_penalty(transition, reference, "published").item() == pytest.approx(exact * 0.1)
