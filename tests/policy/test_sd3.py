"""The policy on the miniature: parity with the stock pipeline, guidance, precision, memory."""

import dataclasses

import numpy as np
import pytest
import torch

from star.evaluation.score_folder import score_folder
from star.method.attention import record_core_attention
from star.policy.rollout import Roller, sample_images
from star.policy.sd3 import load_policy
from star.rewards.preference import PreferenceReward
from star.system.errors import StarError
from tests.helpers.training import (
    BASE,
    CPU,
    EXACT,
    PROMPTS,
    assert_same_images,
    changed,
    core_keys,
    policy_of,
    raising,
    short_model,
    stock_images,
)

FULL = torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_ode_sampling_is_the_stock_pipeline(guidance):
    policy = policy_of(guidance_scale=guidance)
    assert_same_images(sample_images(policy, PROMPTS, [1, 2], 6), stock_images(6, guidance))


def test_images_do_not_depend_on_the_batch():
    policy = policy_of()
    together = sample_images(policy, PROMPTS, [1, 2], 4)[1:]
    alone = sample_images(policy, PROMPTS[1:], [2], 4)
    assert np.abs(together.astype(int) - alone.astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_only_the_transformers_products_are_of_the_autocast_type(precision, dtype):
    """LoRA and its gradients, norms, the sampler's arithmetic and the VAE stay float32."""
    policy = policy_of(precision=precision)
    adapter, computed, decoded = policy.add_adapter(0), [], []

    def noting(types):
        return lambda _, __, output: types.append(output.dtype)

    policy.transformer.transformer_blocks[0].attn.to_q.register_forward_hook(noting(computed))
    policy.pipe.vae.decoder.conv_out.register_forward_hook(noting(decoded))
    roller = Roller(policy, dataclasses.replace(BASE.rollout, steps=3, window=[0, 2]))
    run = roller.draw(PROMPTS, [1, 2], [3, 4], 0, core_keys(policy), BASE.allocation)
    step = roller.again(run, 0)
    step.mean.sum().backward()
    assert set(computed) == {dtype} and set(decoded) == {torch.float32}
    gradients = [parameter.grad for parameter in adapter if parameter.grad is not None]
    assert gradients
    weights = dict(policy.transformer.named_parameters())
    names = {name for name, weight in weights.items() if weight.dtype == torch.float32}
    assert names == {name for name in weights if "lora_" in name or ".norm_" in name}
    held = {weight.dtype for name, weight in weights.items() if name not in names}
    assert held == {dtype}
    kept = (*policy.transformer.buffers(), *policy.pipe.vae.parameters(), *adapter, *gradients)
    made = run.latents, run.means, run.relevance, step.mean
    assert {value.dtype for value in (*kept, *made)} == {torch.float32}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_held_weights_compute_what_autocast_does_of_float32_ones(precision, monkeypatch):
    """To the bit: rollout, maps, gradients, the base model, and what is exported."""
    settings = dataclasses.replace(BASE.rollout, steps=3, window=[0, 2])
    allocation = dataclasses.replace(BASE.allocation, blocks="all")

    def found():
        policy = policy_of(precision=precision, path=short_model(), guidance_scale=3.0)
        adapter = policy.add_adapter(0)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in adapter:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        start = [parameter.detach().clone() for parameter in adapter]
        roller = Roller(policy, settings)
        run = roller.draw(PROMPTS, [1, 2], [3, 4], 0, core_keys(policy), allocation)
        step = roller.again(run, 1)
        step.mean.square().sum().backward()
        with policy.reference(), torch.no_grad():
            base = roller.again(run, 1).mean
        gradients = [parameter.grad for parameter in adapter if parameter.grad is not None]
        made = run.latents, run.means, run.relevance, step.mean, base
        return policy.base, [value.detach() for value in (*start, *made, *gradients)]

    held = found()
    monkeypatch.setattr("star.policy.sd3.hold_products", lambda *_: None)
    cast = found()
    assert held[0] == cast[0], "the fingerprint is that of the files"
    assert all(torch.equal(*pair) for pair in zip(held[1], cast[1], strict=True))


@pytest.mark.parametrize(("found", "precision"), [({}, "no"), ({"amx_bf16": True}, "bf16")])
def test_auto_is_the_policy_of_what_it_stands_for(found, precision, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    models = [dataclasses.replace(EXACT, precision=each) for each in ("auto", precision)]
    auto, named = (load_policy(model, CPU) for model in models)
    assert auto.model == named.model and auto.model.precision == precision
    x, conditioning = auto.noise([1, 2]), auto.encode(PROMPTS)
    assert torch.equal(*(policy.velocity(x, 500.0, conditioning) for policy in (auto, named)))


@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_is_set_before_a_model_opens(monkeypatch, tmp_path, tf32):
    """By the policy, which training and evaluation open, and by the scoring of a folder."""
    asked, params = [], changed(BASE, model={"tf32": tf32})

    def stop(allowed):
        asked.append(allowed)
        raise InterruptedError

    monkeypatch.setattr("star.policy.sd3.set_tf32", stop)
    monkeypatch.setattr("star.evaluation.score_folder.set_tf32", stop)
    with pytest.raises(InterruptedError):
        load_policy(params.model, CPU)
    with pytest.raises(InterruptedError):
        score_folder(params, "geneval", [], tmp_path, tmp_path / "scores")
    assert asked == [tf32, tf32]


def test_guidance_goes_along_the_difference_that_the_prompt_makes():
    """The map of the source `guidance`: ``v(scale) = v_uncond + scale (v_cond - v_uncond)``."""
    one, three = policy_of(), policy_of(guidance_scale=3.0)
    x, conditioning, timestep = one.noise([1, 2]), one.encode(PROMPTS), one.schedule(4).timesteps[1]
    with torch.no_grad():
        direction = one.guidance_direction(x, timestep, conditioning)
        velocities = [policy.velocity(x, timestep, conditioning) for policy in (one, three)]
    assert direction.abs().mean() > 0.01
    assert torch.allclose(velocities[1] - velocities[0], 2 * direction, atol=1e-4)


def test_maps_under_guidance_are_of_the_conditional_half():
    def mass(guidance, prompts):
        policy = policy_of(guidance_scale=guidance)
        given = policy.noise([1, 2]), policy.schedule(4).timesteps[1], policy.encode(prompts)
        with (
            torch.no_grad(),
            record_core_attention(policy.transformer, core_keys(policy), "all") as seen,
        ):
            policy.velocity(*given)
        return seen.mass

    guided = mass(3.0, PROMPTS)
    assert torch.allclose(guided, mass(1.0, PROMPTS), rtol=1e-3)
    assert not torch.allclose(guided, mass(1.0, ["", ""]), rtol=0.1)


@pytest.mark.parametrize(
    "place",
    ["diffusers.SD3Transformer2DModel.from_pretrained", "star.policy.sd3.SD3Policy.__init__"],
)
@pytest.mark.parametrize("error", [FULL, RuntimeError("can't allocate memory")])
def test_memory_is_watched_while_a_model_is_opened(place, error, monkeypatch):
    monkeypatch.setattr(place, raising(error))
    with pytest.raises(StarError, match="memory in the opening phase: set model.precision"):
        load_policy(EXACT, CPU)


def test_memory_is_watched_while_prompts_are_encoded_and_a_judge_is_opened(monkeypatch):
    policy = policy_of()
    monkeypatch.setattr(policy.pipe, "encode_prompt", raising(FULL))
    with pytest.raises(StarError, match="in the prompt encoding phase: lower model.t5_tokens"):
        policy.encode(["a sign"])
    monkeypatch.setattr(torch.nn.Module, "to", raising(FULL))
    with pytest.raises(StarError, match="out of memory in the opening phase"):
        PreferenceReward(BASE.rewards.preference)
