"""The phases of an epoch: first ratios, objectives, the KL, the average, the order of phases."""

import dataclasses
import itertools
import math
from concurrent.futures import Future

import numpy as np
import pytest
import torch

from star.method.objective import SURROGATES, patch_mean
from star.policy.adapter import base_fingerprint
from star.policy.rollout import sample_latents
from star.policy.sd3 import load_policy
from star.rewards.base import RewardResult, finished
from star.system.errors import StarError
from star.training.trainer import ALGORITHMS, Trainer, overlaps
from tests.helpers.training import (
    CPU,
    Clauses,
    Redness,
    adapter_bytes,
    geneval_records,
    policy_of,
    push,
    redness,
    scored,
    small,
    timeless,
    trainer,
)

VARIANTS = {
    "shuffled": {"source": "shuffled"},
    "other_rollout": {"source": "other_rollout"},
    "random_tokens": {"source": "random_tokens"},
    "time_averaged": {"source": "time_averaged"},
    "guidance": {"source": "guidance"},
    "ones": {"source": "uniform", "objective": "local"},
    "weighted": {"objective": "weighted"},
    "joint": {"temporal": "joint"},
    "clause_wise": {"clause_wise": True},
    "clause_maps": {"clause_wise": True, "clause_maps": "own"},
}


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("method", ["star", "flow_grpo"])
def test_first_ratio_is_exactly_one_and_every_parameter_moves(method, precision):
    near = {"learning_rate": 1e-3}  # a far policy makes every ratio small
    run = trainer(small(model={"precision": precision}, train=near), method)
    before = [p.detach().clone() for p in run.parameters]
    lines = [run.train_epoch(), run.train_epoch()]
    assert [line.first_ratio_error for line in lines] == [0.0, 0.0]
    assert lines[1].ratio_max > 1 > lines[1].ratio_min, "an epoch's second update is off-policy"
    assert (lines[0].map_entropy is None) == (method == "flow_grpo")
    names = [name for name, p in run.policy.transformer.named_parameters() if p.requires_grad]
    pairs = zip(names, run.parameters, before, strict=True)
    stayed = [name for name, now, then in pairs if torch.equal(now, then)]
    # The last block drops its text output, and with it the text's queries.
    assert all("transformer_blocks.1.attn.add_q_proj" in name for name in stayed)


@pytest.fixture(scope="module")
def star():
    run = trainer(reward=Clauses())
    return run.train_epoch(), adapter_bytes(run)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_starts_at_ratio_one_and_trains_otherwise_than_star(name, star):
    run = trainer(small(methods={"m": VARIANTS[name]}), "m", reward=Clauses())
    line = run.train_epoch()
    assert line.first_ratio_error == 0.0
    assert line.reward_mean == star[0].reward_mean, "the same images, whatever the allocation"
    assert adapter_bytes(run) != star[1]


@pytest.mark.parametrize(
    "sections",
    [
        {"rollout": {"sampler": "dance", "noise_level": 0.5}},
        {"rollout": {"sampler": "cps", "noise_level": 0.5, "window": [0, 1]}},
        {"train": {"normalise_ratio": True}},
    ],
)
def test_every_sampler_and_ratio_starts_at_one(sections):
    line = trainer(small(**sections)).train_epoch()
    assert line.first_ratio_error == 0.0 and line.ratio_max > 1


def test_the_window_of_an_epoch_is_trained():
    run = trainer(small(rollout={"slide_every": 2, "window": [0, 1]}))
    run.epoch = 2
    assert run.sample(run.plan.batches(2)[0]).first == 1
    assert run.train_epoch().first_ratio_error == 0.0


def test_no_strength_is_flow_grpo_bit_for_bit_and_star_is_not(star):
    runs = [trainer(lam=0.0), trainer(method="flow_grpo"), trainer()]
    rewards = [[run.train_epoch().reward_mean for _ in range(2)][-1] for run in runs]
    assert adapter_bytes(runs[0]) == adapter_bytes(runs[1]) != adapter_bytes(runs[2])
    assert rewards[0] == rewards[1]


def test_clauses_without_maps_are_flow_grpo():
    """Their advantages add up to the usual one, but for rounding."""
    runs = [
        trainer(reward=Clauses(), lam=0.0, clause_wise=True),
        trainer(method="flow_grpo", reward=Clauses()),
    ]
    lines = [[run.train_epoch() for _ in range(2)] for run in runs]
    for ours, theirs in zip(*lines, strict=True):
        assert ours.reward_mean == theirs.reward_mean
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-5)


def test_clause_wise_is_star_where_there_is_one_clause():
    single = [record for record in geneval_records() if len(record.metadata["include"]) == 1]
    runs = [trainer(records=single, reward=Clauses(), clause_wise=wise) for wise in (False, True)]
    for run in runs:
        run.train_epoch()
    assert adapter_bytes(runs[0]) == adapter_bytes(runs[1])


def test_rollouts_that_the_update_computes_otherwise_are_not_learnt_from(monkeypatch):
    run = trainer(small(train={"clip_range": 1e-4}), "flow_grpo")
    before, again = adapter_bytes(run), run.algorithm.roller.again

    def slightly_off(trajectory, row):
        exact = again(trajectory, row)
        return dataclasses.replace(exact, mean=exact.mean + 1e-2)

    monkeypatch.setattr(run.algorithm.roller, "again", slightly_off)
    with pytest.raises(StarError, match=r"epoch 1: ratios differ from 1 by .* model\.compile"):
        run.train_epoch()
    assert adapter_bytes(run) == before


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("objective", ["local", "weighted"])
def test_the_loss_of_a_policy_that_moved_is_the_formula_s(objective, normalised):
    run = trainer(small(train={"normalise_ratio": normalised}), objective=objective)
    item = scored(run)[0]
    push(run)
    for row in range(2):
        found, now = run.algorithm.surrogate(item, row)
        old, x = item.trajectory.means[row], item.trajectory.latents[row + 1]
        densities = [torch.distributions.Normal(m, now.std).log_prob(x) for m in (now.mean, old)]
        forms = [densities[0] - densities[1], (now.mean - old) * (x - old) / now.std]
        expected, other = (
            SURROGATES[objective](
                patch_mean(form, run.policy.patch),
                item.advantages,
                item.weights[:, row],
                run.train.clip_range,
            )
            for form in (forms[normalised], forms[not normalised])
        )
        assert torch.allclose(found.ratio, expected.ratio, rtol=1e-4)
        assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-3)
        assert not torch.allclose(found.ratio, other.ratio, rtol=1e-3)


@pytest.mark.parametrize("objective", ["local", "scalar"])
def test_the_kl_mask_of_a_policy_that_moved_is_the_formula_s(objective):
    """One decision a location, or one a step."""
    source = "attention" if objective == "local" else "uniform"
    run = trainer(small(train={"trust": "kl_mask"}), objective=objective, source=source)
    item = scored(run)[0]
    push(run)
    for row in range(2):
        found, now = run.algorithm.surrogate(item, row)
        old, x = item.trajectory.means[row], item.trajectory.latents[row + 1]
        new, old = (torch.distributions.Normal(m.detach(), now.std) for m in (now.mean, old))
        forms = new.log_prob(x) - old.log_prob(x), torch.distributions.kl_divergence(new, old)
        moved, kl = (patch_mean(form, run.policy.patch) for form in forms)
        credit = item.advantages * item.weights[:, row, 0]
        if objective == "scalar":
            moved, kl, credit = (each.mean(1, keepdim=True) for each in (moved, kl, credit))
        ratio, dropped = moved.exp(), (kl >= 1e-5) & (credit * moved > 0)
        assert found.clipped.item() == pytest.approx(dropped.float().mean().item(), abs=0.01)
        expected = -(credit * ratio)[~dropped].sum() / ratio.numel()
        assert found.loss.item() == pytest.approx(expected.item(), rel=1e-2, abs=1e-4)
        assert 0 < found.clipped.item() < 1


def test_the_kl_mask_starts_at_ratio_one_and_learns_otherwise_than_the_clip(star):
    run = trainer(small(train={"trust": "kl_mask"}), reward=Clauses())
    line = run.train_epoch()
    assert line.first_ratio_error == 0.0 and 0 < line.clip_fraction < 1
    assert adapter_bytes(run) != star[1]


def test_the_state_of_a_training_on_another_base_is_refused():
    state, policy = trainer().state(), policy_of(small().model)
    policy.transformer.transformer_blocks[1].norm1.linear.weight.data += 1e-3
    policy.base = base_fingerprint(policy.transformer)  # as if it had been opened so
    params = small()
    other = Trainer(
        params, params.with_method("star").allocation, geneval_records(), Redness(), policy
    )
    with pytest.raises(StarError, match="another base model; set model.path"):
        other.restore(*state)


class Slow(Redness):
    """Redness whose results nobody may ask for while there are images to draw."""

    def __init__(self, events):
        super().__init__()
        self.events = events

    def submit(self, images, records):
        self.events.append("submit")
        result = Future()
        result.set_result(super().submit(images, records).result())
        wait = result.result

        def ask(timeout=None):
            self.events.append("result")
            return wait()

        result.result = ask
        return result


@pytest.mark.parametrize(
    ("overlap", "order"), [(True, ["draw", "submit"] * 4), (False, ["draw"] * 4 + ["submit"] * 4)]
)
def test_batches_are_drawn_while_the_ones_before_are_scored(monkeypatch, overlap, order):
    """Beside a GPU; on a CPU scoring begins after the last batch."""
    monkeypatch.setattr("star.training.trainer.overlaps", lambda device: overlap)
    events = []
    run = trainer(small(rollout={"batch": 4}), "flow_grpo", reward=Slow(events))
    sample = run.sample
    monkeypatch.setattr(run, "sample", lambda batch: (events.append("draw"), sample(batch))[1])
    line = run.train_epoch()
    assert events == order + ["result"] * 4
    assert line.first_ratio_error == 0.0 and line.images == 16


def test_scoring_overlaps_beside_any_device_but_the_cpu():
    assert overlaps(torch.device("cuda", 1)) and not overlaps(CPU)


def test_a_training_raises_its_reward():
    train = {"group_size": 16, "prompts_per_epoch": 1, "updates_per_epoch": 1}
    params = small(train=train | {"learning_rate": 2e-2}, rollout={"steps": 2, "window": [0, 1]})
    run = trainer(params, records=geneval_records()[:1])
    rewards = [run.train_epoch().reward_mean for _ in range(6)]
    assert np.mean(rewards[-2:]) > np.mean(rewards[:2]) + 0.05


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_kl_is_logged_and_zero_at_the_base(beta):
    run = trainer(small(train={"kl_beta": beta, "updates_per_epoch": 1}))
    assert run.train_epoch().kl == 0.0 < run.train_epoch().kl


def test_without_a_kl_form_there_is_no_second_forward_pass(monkeypatch):
    run = trainer(small(train={"kl_form": "none"}))
    monkeypatch.setattr(run.policy, "reference", None)
    assert run.train_epoch().kl is None


def test_the_kl_is_in_the_loss_in_the_form_that_is_asked_for():
    """Of a policy off the base before its first update; `exact` has the length of the one step."""
    lines = []
    for beta, form in ((0.0, "published"), (0.5, "published"), (0.5, "exact")):
        train = {"kl_beta": beta, "kl_form": form, "updates_per_epoch": 1}
        run = trainer(small(train=train, rollout={"window": [0, 1]}))
        push(run)
        lines.append(run.train_epoch())
    without, published, exact = lines
    sigmas = run.algorithm.roller.schedule.sigmas
    assert exact.kl == pytest.approx(published.kl / (sigmas[0] - sigmas[1]), rel=1e-4)
    for line in (published, exact):
        assert line.loss - without.loss == pytest.approx(0.5 * line.kl, rel=1e-2) and line.kl > 0


class Solved(Redness):
    """Redness, but that the images of the first batch are all alike."""

    def submit(self, images, records):
        result = super().submit(images, records).result()
        if self.calls == 1:
            result.scores[:] = 0.5
        return finished(result)


@pytest.mark.parametrize("beta", [0.0, 10.0])
def test_rollouts_without_advantage_leave_the_mean_of_the_loss_and_of_the_kl(beta):
    """Of an update of four batches of a group each: the mean is then over the other three."""
    train, losses = {"kl_beta": beta, "updates_per_epoch": 1}, {}
    for how in ("keep", "drop"):
        params = small(train={**train, "zero_advantage": how}, rollout={"batch": 4})
        run = trainer(params, reward=Solved())
        items = scored(run)
        push(run)
        terms = [[run.algorithm.term(item, row, True) for row in (0, 1)] for item in items]
        losses[how] = torch.tensor([[term.loss.item() for term in each] for each in terms])
        kls = torch.tensor([[term.figures["kl"].item() for term in each] for each in terms])
        assert kls.min() > 0, "the log has the KL of all"
    assert torch.equal(losses["keep"][0], beta * kls[0]), "the KL alone"
    assert losses["drop"][0].tolist() == [0.0, 0.0]
    assert torch.allclose(losses["drop"][1:], 4 / 3 * losses["keep"][1:], rtol=1e-5, atol=0)


@pytest.mark.parametrize("window", [[0, 2], [1, 3], [1, 2]])
def test_step_weights_multiply_the_loss_of_each_step_and_have_mean_one(window):
    """With its penalty; a window of one step is trained as without them, bit for bit."""
    run = trainer(small(train={"kl_beta": 0.1}, rollout={"steps": 4, "window": window}))
    item = scored(run)[0]
    push(run)
    first, end = window
    plain = [run.algorithm.term(item, row, False).loss for row in range(end - first)]
    run.algorithm.train = dataclasses.replace(run.train, step_weight="noise")
    found = [run.algorithm.term(item, row, False).loss for row in range(end - first)]
    s = run.algorithm.roller.schedule.sigmas
    noise = [math.sqrt(s[t] / (1 - s[max(t, 1)]) * (s[t] - s[t + 1])) for t in range(first, end)]
    for row, one in enumerate(noise):
        weight = one * len(noise) / sum(noise)
        assert found[row].item() == pytest.approx(weight * plain[row].item(), rel=1e-6)
    assert (found == plain) == (len(noise) == 1)


class Indifferent(Redness):
    """One score for all images, so that the penalty alone can teach."""

    def submit(self, images, records):
        return finished(RewardResult(0 * redness(images).mean((1, 2)), [{} for _ in records]))


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_the_gradient_of_the_kl_leads_back_to_the_base(beta):
    train = {"kl_beta": beta, "weight_decay": 0.0, "learning_rate": 3e-3, "clip_range": 1e3}
    run = trainer(small(train=train), reward=Indifferent())
    push(run)
    before, items = [p.detach().clone() for p in run.parameters], scored(run)
    lines = [run.update(items) for _ in range(3)]
    if beta:
        assert lines[2]["kl"] < 0.8 * lines[0]["kl"]
    else:
        assert all(map(torch.equal, run.parameters, before)) and lines[0]["grad_norm"] == 0.0


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"ema_every": 2}, 3 / 12),
        ({"ema_every": 2, "ema_decay": 0.125}, 0.125),
        ({"ema_every": 3}, 1.0),
    ],
)
def test_the_average_of_an_epoch_of_two_updates_is_what_is_exported(tmp_path, changes, kept):
    run = trainer(small(train=changes), "flow_grpo")
    start = [p.detach().clone() for p in run.parameters]
    run.train_epoch()
    pairs = zip(start, run.parameters, strict=True)
    averaged = [kept * then + (1 - kept) * now.detach() for then, now in pairs]
    own = adapter_bytes(run)
    (tmp_path / "log.jsonl").touch()
    run.export(tmp_path, tmp_path / "out")
    assert adapter_bytes(run) == own, "the training goes on with its own"
    exported = load_policy(run.params.model, CPU, tmp_path / "out/adapter").transformer
    named = [(name, p) for name, p in exported.named_parameters() if "lora_" in name]
    # Its strength, 2, is in the B matrices.
    found = [p / 2 if "lora_B" in name else p for name, p in named]
    for one, wanted in zip(found, averaged, strict=True):
        assert torch.allclose(one, wanted, atol=1e-7)
    own_values = zip(found, run.parameters, strict=True)
    assert not all(torch.allclose(one, own, atol=1e-3) for one, own in own_values)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_less_memory_trains_alike(algorithm):
    """Checkpointing, slicing and graph capture change how a model runs, not what it learns."""
    spared = {"gradient_checkpointing": True, "vae_slicing": True, "compile": "aot_eager"}
    alike = {"rollout": {"steps": 2, "window": [0, 1], "same_latent": False}}  # one batch size
    # One kind of pass: each is captured anew.
    alike |= {"train": {"kl_form": "none", "updates_per_epoch": 1}}
    runs = [trainer(small(algorithm, model=m, **alike)) for m in ({}, spared)]
    plain, other = (run.train_epoch() for run in runs)
    torch.compiler.reset()
    for key in ("reward_mean", "grad_norm", "loss", "map_entropy"):
        assert getattr(other, key) == pytest.approx(getattr(plain, key), rel=1e-3, abs=1e-6), key


NOISED = ("awm", "nft")  # algorithms that noise the finished images


@pytest.mark.parametrize("algorithm", NOISED)
@pytest.mark.parametrize(
    "name", ["plain", *(name for name in VARIANTS if name not in ("ones", "weighted"))]
)
def test_noised_images_train_with_every_source_of_maps(name, algorithm):
    """Rollouts of a group are different images, although they share no stochastic step."""
    methods = {"m": VARIANTS.get(name, {"source": "uniform"})}
    near = {"learning_rate": 1e-3}
    run = trainer(small(algorithm, methods=methods, train=near), "m", reward=Clauses())
    before, groups = adapter_bytes(run), run.plan.batches(0)[0].start_seeds
    assert len(set(groups)) == len(groups)
    line = run.train_epoch()
    assert adapter_bytes(run) != before and math.isfinite(line.loss) and line.drift > 0
    assert line.ratio_mean is None and line.kl is None
    assert (line.map_entropy is None) == (name == "plain")


@pytest.mark.parametrize("algorithm", NOISED)
def test_no_strength_is_the_published_algorithm_bit_for_bit_and_star_is_not(algorithm):
    params = small(algorithm)
    runs = [trainer(params, lam=0.0), trainer(params, "flow_grpo"), trainer(params)]
    for run in runs:
        run.train_epoch()
    assert adapter_bytes(runs[0]) == adapter_bytes(runs[1]) != adapter_bytes(runs[2])


@pytest.mark.parametrize("name", ["plain", "star", "random_tokens", "guidance", "clause_maps"])
def test_what_the_training_pass_reads_is_what_a_pass_before_it_would(name, monkeypatch):
    """Of AWM with one update an epoch: the same losses, maps and gradients, for fewer passes."""
    methods = {"m": {"plain": {"source": "uniform"}, "star": {}, **VARIANTS}[name]}
    params = small(
        "awm", methods=methods, train={"updates_per_epoch": 1}, forward={"anchor_to": "old"}
    )
    found = []
    for ahead in (False, True):
        if ahead:
            monkeypatch.setattr("star.training.forward_process.looks_ahead", lambda *_: True)
        run = trainer(params, "m", reward=Clauses())
        assert run.algorithm.ahead == ahead
        found.append(([timeless(run.train_epoch()) for _ in range(2)], adapter_bytes(run)))
    (lines, adapter), (other_lines, other_adapter) = found
    if name == "clause_maps":  # sums over tokens are products of other sizes, and round otherwise
        for key in ("reward_mean", "loss", "grad_norm", "map_entropy"):
            found = [line[key] for line in lines], [line[key] for line in other_lines]
            assert found[0] == pytest.approx(found[1], rel=1e-3, abs=1e-5)
    else:
        assert lines == other_lines and adapter == other_adapter
    assert lines[1]["drift"] == 0.0


@pytest.mark.parametrize("shared", [True, False])
def test_a_group_shares_its_levels_and_noise_if_it_is_to(shared):
    run = trainer(small("awm", forward={"shared_noise": shared, "draws": 4}))
    batch = run.plan.batches(0)[0]
    drawn = run.sample(batch)
    assert drawn.levels.shape == (4, 8) and drawn.steps == 4
    same = [shared and one == two for one, two in itertools.pairwise(batch.groups)]
    assert same == [bool((a == b).all()) for a, b in itertools.pairwise(drawn.levels.T)]
    noise = drawn.noise.transpose(0, 1)
    assert same == [bool((a == b).all()) for a, b in itertools.pairwise(noise)]


@pytest.mark.parametrize("advantage", ["clip", "tanh"])
@pytest.mark.parametrize("algorithm", NOISED)
def test_the_first_loss_and_gradient_are_those_of_the_equations(algorithm, advantage):
    """In float64 from the velocities alone: ``2 A w_p (v - Y)_p``, scaled, through the policy."""
    train = {"updates_per_epoch": 1, "advantage_clip": 100.0}  # no location is beyond
    changes = {"anchor": 0.0, "advantage": advantage}
    run = trainer(
        small(algorithm, train=train, forward=changes), clause_wise=True, reward=Clauses()
    )
    push(run)
    if algorithm == "nft":
        run.algorithm.follow(0)  # a share of 0 stays: the old policy is the trained one
    item = scored(run)[0]
    term = run.algorithm.term(item, 1, False)
    term.loss.backward()
    found = [p.grad.clone() for p in run.parameters if p.grad is not None]
    run.optimizer.zero_grad()
    drawn, patch = item.trajectory, run.policy.patch
    t, e = drawn.levels[1].view(-1, 1, 1, 1), drawn.noise[1]
    x = (1 - t) * drawn.clean + t * e
    velocity = run.policy.velocity(x, 1000 * drawn.levels[1], drawn.conditioning)
    error = velocity.detach().double() - (e.double() - drawn.clean.double())
    a = item.advantages.double()
    a = 3 * torch.tanh(a / 3) if advantage == "tanh" else a
    local = torch.einsum("bk,bkp->bp", a, item.weights[:, 1].double())
    side = error.shape[-1] // patch
    places = local.view(-1, 1, side, side).repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    if algorithm == "awm":
        scale = error.square().mean((1, 2, 3), keepdim=True).sqrt()
        loss = (places * error.square() / scale).mean()
    else:
        scale = error.abs().mean((1, 2, 3), keepdim=True) / t.double()
        loss = 100 / 0.1 * (error.square() / scale).mean()
    given = 2 * places * error / scale / error.numel()
    velocity.backward(given.float())
    wanted = [p.grad for p in run.parameters if p.grad is not None]
    assert term.loss.item() == pytest.approx(loss.item(), rel=1e-4, abs=1e-6)
    size = torch.cat([w.flatten() for w in wanted]).norm()
    off = torch.cat([(f - w).flatten() for f, w in zip(found, wanted, strict=True)]).norm()
    assert size > 0 and off < 1e-3 * size


def test_the_old_policy_of_nft_draws_and_follows_by_the_schedule():
    """Two updates an epoch at 0.2 each: 0.4 of it stays after the first, then 0.5."""
    run = trainer(small("nft", train={"learning_rate": 1e-3}))
    old = [p.detach().clone() for p in run.parameters]
    for share in (0.4, 0.5):
        assert all(map(torch.equal, run.algorithm.values, old))
        run.train_epoch()
        pairs = zip(old, run.parameters, strict=True)
        old = [(share * then + (1 - share) * now).detach() for then, now in pairs]
        near = zip(run.algorithm.values, old, strict=True)
        assert all(torch.allclose(one, other, atol=1e-7) for one, other in near)
        old = [value.clone() for value in run.algorithm.values]
    batch, own = run.plan.batches(2)[0], adapter_bytes(run)
    drawn = run.sample(batch)
    assert adapter_bytes(run) == own, "the trained policy is back"
    conditioning = run.policy.encode([record.prompt for record in batch.records])
    inputs = run.policy, conditioning, batch.start_seeds, run.params.rollout.steps, "dpm2m"
    with torch.no_grad():
        assert not torch.equal(drawn.clean, sample_latents(*inputs))
        torch._foreach_copy_(run.parameters, old)
        assert torch.equal(drawn.clean, sample_latents(*inputs))
        noised = drawn.at(0), run.policy.timesteps(drawn.levels[0]), conditioning
        assert torch.equal(drawn.velocities[0], run.policy.velocity(*noised))


@pytest.mark.parametrize("algorithm", NOISED)
def test_an_anchor_holds_the_policy_to_the_base(algorithm):
    """Of rewards that say nothing, the anchor alone teaches: back to the base."""
    params = small(
        algorithm,
        train={"weight_decay": 0.0, "learning_rate": 3e-3, "updates_per_epoch": 1},
        forward={"anchor": 1.0, "anchor_to": "base", "old_rate": 0.0},
    )
    run = trainer(params, "flow_grpo", reward=Indifferent())
    push(run)
    if algorithm == "nft":
        run.algorithm.follow(0)
    drifts = [run.train_epoch().drift for _ in range(3)]
    assert 0 < drifts[2] < 0.8 * drifts[0]


def test_an_average_of_the_policy_is_an_anchor():
    """The distance from it is that of velocities; it begins as the policy that was opened."""
    run = trainer(
        small("awm", forward={"anchor": 1.0, "anchor_to": "ema", "anchor_decay": 0.2}),
        reward=Indifferent(),
    )
    opened = [value.clone() for value in run.parameters]
    push(run)
    item = scored(run)[0]
    inputs = item.trajectory.at(0), run.policy.timesteps(item.trajectory.levels[0])
    with torch.no_grad():
        ours = run.policy.velocity(*inputs, item.trajectory.conditioning)
        with run.policy.reference():  # what was opened: a fresh adapter adds nothing
            base = run.policy.velocity(*inputs, item.trajectory.conditioning)
        drift = run.algorithm.term(item, 0, True).figures["drift"]
    torch.testing.assert_close(drift, (ours - base).square().mean())

    run.algorithm.follow(100)
    kept = run.algorithm.tensors().values()
    for value, first, now in zip(kept, opened, run.parameters, strict=True):
        torch.testing.assert_close(value, 0.2 * first + 0.8 * now)


@pytest.mark.parametrize("algorithm", NOISED)
def test_noised_images_raise_the_reward(algorithm):
    train = {"group_size": 16, "prompts_per_epoch": 1, "updates_per_epoch": 1}
    near = {"nft_beta": 1.0, "old_rate": 0.0}  # a slower old policy wants a lower rate
    near |= {"draws": 4, "levels": "stratified", "shared_noise": True, "anchor": 0.0}
    params = small(algorithm, train={**train, "learning_rate": 2e-2}, forward=near)
    run = trainer(params, records=geneval_records()[:1])
    rewards = [run.train_epoch().reward_mean for _ in range(6)]
    assert np.mean(rewards[-2:]) > np.mean(rewards[:2]) + 0.05
