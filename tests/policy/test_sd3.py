"""The policy on the miniature: parity with the stock pipeline, guidance, adapters, clear errors."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors import safe_open
from safetensors.torch import save_file

from star.config.params import load_params
from star.method.attention import CoreKeys, record_core_attention
from star.method.sde import ode_step
from star.policy.adapter import base_fingerprint
from star.policy.rollout import Trajectory, roll_out, sample_images
from star.policy.sd3 import load_policy
from star.system.errors import StarError

PARAMS = load_params(Path("params.yaml"))
EXACT = dataclasses.replace(
    PARAMS.model, precision="no"
)  # float32 throughout, as the stock pipeline computes
CPU = torch.device("cpu")
PROMPTS = ["a photo of a red car", 'a sign that says "STAR"']


def stock_images(policy, guidance: float, steps: int, adapter: Path | None = None) -> np.ndarray:
    pipe = StableDiffusion3Pipeline.from_pretrained(PARAMS.model.path, dtype=torch.float32)
    if adapter is not None:
        pipe.load_lora_weights(adapter)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(
        PROMPTS,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=policy.noise([1, 2]),
        height=64,
        width=64,
        max_sequence_length=PARAMS.model.t5_tokens,
        output_type="np",
    ).images
    return (images * 255).round().astype(np.uint8)


def assert_same_images(ours: np.ndarray, stock: np.ndarray) -> None:
    """Equal but for single grey levels where the two attention kernels round a tie differently."""
    difference = np.abs(ours.astype(int) - stock.astype(int))
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_ode_sampling_is_the_stock_pipeline(guidance):
    policy = load_policy(dataclasses.replace(EXACT, guidance_scale=guidance), CPU)
    assert_same_images(sample_images(policy, PROMPTS, [1, 2], 6), stock_images(policy, guidance, 6))


def test_rollout_without_noise_is_the_stock_pipeline():
    """A tiny noise level: the log-ratio needs a positive deviation, the image must be the
    ODE's."""
    policy = load_policy(EXACT, CPU)
    rollout = dataclasses.replace(PARAMS.rollout, steps=6, window=[0, 3], noise_level=1e-6)
    trajectory = roll_out(policy, PROMPTS, [1, 2], [3, 4], rollout, 0, None, PARAMS.allocation)
    assert_same_images(trajectory.images, stock_images(policy, 1.0, 6))


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_only_the_transformers_products_are_of_the_autocast_type(precision, dtype):
    """Master weights, LoRA and its gradients, the sampler's arithmetic and the VAE stay float32."""
    policy = load_policy(dataclasses.replace(PARAMS.model, precision=precision), CPU)
    masters = policy.add_adapter(0)
    computed, decoded = [], []
    policy.transformer.transformer_blocks[0].attn.to_q.register_forward_hook(
        lambda _, __, y: computed.append(y.dtype)
    )
    policy.pipe.vae.decoder.conv_out.register_forward_hook(lambda _, __, y: decoded.append(y.dtype))
    rollout = dataclasses.replace(PARAMS.rollout, steps=3, window=[0, 2], same_latent=False)
    core = CoreKeys(torch.tensor([[0], [3]]), torch.ones(2, 1, 1))
    run = roll_out(policy, PROMPTS, [1, 2], [3, 4], rollout, 0, core, PARAMS.allocation)
    step = run.transition(policy, 0, policy.schedule(3), rollout)
    step.mean.sum().backward()
    assert set(computed) == {dtype} and set(decoded) == {torch.float32}
    parameters = [*policy.transformer.parameters(), *policy.pipe.vae.parameters()]
    gradients = [master.grad for master in masters if master.grad is not None]
    assert gradients
    kept = (*parameters, *gradients, run.latents, run.means, run.relevance, step.mean)
    assert {value.dtype for value in kept} == {torch.float32}


def test_there_is_no_noise_outside_of_the_window():
    policy = load_policy(EXACT, CPU)
    rollout = dataclasses.replace(PARAMS.rollout, steps=5, window=[1, 3])
    schedule, conditioning = policy.schedule(5), policy.encode(PROMPTS)

    @torch.no_grad()
    def ode(x: torch.Tensor, steps: range) -> torch.Tensor:
        for t in steps:
            velocity = policy.velocity(x, schedule.timesteps[t], conditioning)
            x = ode_step(x, velocity, schedule.sigmas[t], schedule.sigmas[t + 1])
        return x

    runs = [
        roll_out(policy, PROMPTS, [1, 2], s, rollout, 1, None, PARAMS.allocation)
        for s in ([3, 4], [5, 6])
    ]
    for run in runs:
        assert torch.equal(run.latents[0], ode(policy.noise([1, 2]), range(1)))
        assert np.array_equal(run.images, policy.decode(ode(run.latents[2], range(3, 5))))
    assert (runs[0].latents[1] - runs[1].latents[1]).abs().mean() > 0.1, "inside there is"


def test_guidance_goes_along_the_difference_that_the_prompt_makes():
    """The map of the source `guidance`: ``v(scale) = v_uncond + scale (v_cond - v_uncond)``."""
    one, three = (
        load_policy(dataclasses.replace(EXACT, guidance_scale=scale), CPU) for scale in (1.0, 3.0)
    )
    x, conditioning, timestep = one.noise([1, 2]), one.encode(PROMPTS), one.schedule(4).timesteps[1]
    with torch.no_grad():
        direction = one.guidance_direction(x, timestep, conditioning)
        velocities = [policy.velocity(x, timestep, conditioning) for policy in (one, three)]
    assert direction.abs().mean() > 0.01
    assert torch.allclose(velocities[1] - velocities[0], 2 * direction, atol=1e-4)


def test_maps_under_guidance_are_of_the_conditional_half():
    def mass(guidance: float, prompts: list[str]) -> torch.Tensor:
        policy = load_policy(dataclasses.replace(EXACT, guidance_scale=guidance), CPU)
        weights = torch.zeros(2, 1, sum(policy.text_lengths))
        weights[:, :, 3:6] = 1
        with (
            torch.no_grad(),
            record_core_attention(
                policy.transformer, CoreKeys.from_weights(weights), "all"
            ) as seen,
        ):
            policy.velocity(
                policy.noise([1, 2]), policy.schedule(4).timesteps[1], policy.encode(prompts)
            )
        return seen.mass

    guided = mass(3.0, PROMPTS)
    assert torch.allclose(guided, mass(1.0, PROMPTS), rtol=1e-3)
    assert not torch.allclose(guided, mass(1.0, ["", ""]), rtol=0.1)


@pytest.mark.parametrize("window", [[0, 2], [1, 3]])
def test_what_a_group_shares_is_run_once_and_changes_nothing(window):
    """Groups side by side share their first passes; the same rollouts in another order share
    none."""
    policy = load_policy(EXACT, CPU)
    rollout = dataclasses.replace(PARAMS.rollout, steps=4, window=window)
    weights = torch.zeros(2, 1, sum(policy.text_lengths))
    weights[:, :, 3:5] = 1
    grouped, mixed = [0, 0, 1, 1], [0, 1, 0, 1]

    def run(order: list[int], step_seeds: list[int]) -> Trajectory:
        core = CoreKeys.from_weights(weights[order])
        prompts, starts = [PROMPTS[i] for i in order], [1 + i for i in order]
        return roll_out(
            policy, prompts, starts, step_seeds, rollout, window[0], core, PARAMS.allocation
        )

    together, apart = run(grouped, [3, 4, 5, 6]), run(mixed, [3, 5, 4, 6])
    assert (together.shared, apart.shared) == (2, 1)
    assert torch.allclose(together.latents, apart.latents[:, [0, 2, 1, 3]], atol=1e-4)
    assert torch.allclose(together.means, apart.means[:, [0, 2, 1, 3]], atol=1e-4)
    assert torch.allclose(together.relevance, apart.relevance[[0, 2, 1, 3]], rtol=1e-3)


def test_adapter_round_trip_through_plain_diffusers(tmp_path):
    policy = load_policy(EXACT, CPU)
    base = sample_images(policy, PROMPTS, [1, 2], 4)
    parameters = policy.add_adapter(seed=0)
    assert np.array_equal(sample_images(policy, PROMPTS, [1, 2], 4), base), (
        "a fresh adapter changes nothing"
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    trained = sample_images(policy, PROMPTS, [1, 2], 4)
    assert (trained != base).mean() > 0.01
    with policy.reference():
        assert np.array_equal(sample_images(policy, PROMPTS, [1, 2], 4), base)
    policy.save_adapter(tmp_path)
    assert_same_images(trained, stock_images(policy, 1.0, 4, tmp_path))
    assert np.array_equal(
        sample_images(load_policy(EXACT, CPU, tmp_path), PROMPTS, [1, 2], 4), trained
    )


def test_adapter_of_another_base_is_refused_wherever_the_base_lies(tmp_path):
    policy = load_policy(EXACT, CPU)
    policy.add_adapter(seed=0)
    policy.save_adapter(tmp_path / "adapter")
    shutil.copytree(EXACT.path, tmp_path / "moved")
    moved = dataclasses.replace(EXACT, path=str(tmp_path / "moved"))
    load_policy(moved, CPU, tmp_path / "adapter")
    policy.transformer.proj_out.weight.data[0, 0] += 1e-3
    policy.transformer.unload_lora()
    policy.transformer.save_pretrained(tmp_path / "moved" / "transformer")
    with pytest.raises(
        StarError,
        match=f"trained on another base, {EXACT.path}, and not on .*moved; set model.path",
    ):
        load_policy(moved, CPU, tmp_path / "adapter")


def test_a_base_is_told_from_one_that_was_trained_further_in_any_layer():
    transformer = load_policy(EXACT, CPU).transformer
    known = base_fingerprint(transformer)
    transformer.transformer_blocks[3].attn.to_k.weight.data += 1e-3
    other = base_fingerprint(transformer)
    assert other != known
    policy = load_policy(EXACT, CPU)
    policy.add_adapter(seed=0)
    assert base_fingerprint(policy.transformer) == known, "an adapter is no part of the base"


@pytest.mark.parametrize("text", ["{", "[]", '{"path": "models/miniature"}'])
def test_an_adapter_that_does_not_say_its_base_readably_is_named(tmp_path, text):
    policy = load_policy(EXACT, CPU)
    policy.add_adapter(seed=0)
    policy.save_adapter(tmp_path)
    (tmp_path / "base.json").write_text(text)
    with pytest.raises(StarError, match="base.json: does not say what the adapter was trained on"):
        load_policy(EXACT, CPU, tmp_path)


def test_an_adapter_that_is_cut_short_is_named(tmp_path):
    policy = load_policy(EXACT, CPU)
    policy.add_adapter(seed=0)
    policy.save_adapter(tmp_path)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(StarError, match="not a LoRA adapter for models/miniature"):
        load_policy(EXACT, CPU, tmp_path)


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (
            ("transformer.", "unet."),
            r"126 keys belong to no layer .* \(unet\..*, and 0 are missing \(none\)",
        ),
        (
            ("blocks.0.attn.to_q.", "blocks.0.attn.query."),
            r"2 keys .*attn.query.lora_A.* 2 are missing .*to_q.lora_A",
        ),
        (
            ("blocks.0.attn.to_q.", ""),
            r"0 keys belong to no layer .* 2 are missing \(.*blocks.0.attn.to_q.lora_A",
        ),
        (
            ("blocks.0.attn.to_q.lora_B", ""),
            r"0 keys belong to no layer .* 1 are missing \(.*to_q.lora_B.weight\)",
        ),
    ],
)
def test_an_adapter_of_other_layers_is_not_taken_for_the_base_model(tmp_path, rename, message):
    """Keys are renamed, or left out where the new name is empty."""
    policy = load_policy(EXACT, CPU)
    policy.add_adapter(seed=0)
    policy.save_adapter(tmp_path)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    with safe_open(file, framework="pt") as opened:
        metadata, tensors = (
            opened.metadata(),
            {key: opened.get_tensor(key) for key in opened.keys()},  # noqa: SIM118
        )
    old, new = rename
    kept = {
        key.replace(old, new, 1): tensor for key, tensor in tensors.items() if new or old not in key
    }
    save_file(kept, file, metadata=metadata)
    with pytest.raises(StarError, match=f"{file}: {message}"):
        load_policy(EXACT, CPU, tmp_path)


def test_adapter_leaves_the_image_only_attention_alone():
    policy = load_policy(EXACT, CPU)
    policy.add_adapter(seed=0)
    names = [name for name, p in policy.transformer.named_parameters() if p.requires_grad]
    assert names and not any("attn2" in name for name in names)


def test_images_do_not_depend_on_the_batch():
    policy = load_policy(EXACT, CPU)
    together = sample_images(policy, PROMPTS, [1, 2], 4)
    alone = sample_images(policy, PROMPTS[1:], [2], 4)
    assert np.abs(together[1].astype(int) - alone[0].astype(int)).max() <= 1


def broken_copy(tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    shutil.copytree(PARAMS.model.path, copy)
    return copy


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: shutil.rmtree(m), "no such directory"),
        (lambda m: (m / "model_index.json").unlink(), "model_index.json is missing"),
        (lambda m: shutil.rmtree(m / "text_encoder_3"), "the part text_encoder_3/ is missing"),
        (
            lambda m: next((m / "vae").glob("*.safetensors")).rename(m / "vae" / "model.bin"),
            "vae/ has no .safetensors",
        ),
        (
            lambda m: (m / "model_index.json").write_text(
                json.dumps({"_class_name": "FluxPipeline"})
            ),
            "a FluxPipeline",
        ),
    ],
)
def test_a_broken_model_directory_is_named(tmp_path, damage, message):
    model = broken_copy(tmp_path)
    damage(model)
    with pytest.raises(StarError, match=message):
        load_policy(dataclasses.replace(EXACT, path=str(model)), CPU)


def test_the_same_adapter_gives_the_same_bytes_in_another_process(tmp_path):
    program = (
        "import sys, torch; from pathlib import Path; from star.config.params import load_params; "
        "from star.policy.sd3 import load_policy\n"
        "policy = load_policy(load_params(Path('params.yaml')).model, torch.device('cpu'))\n"
        "policy.add_adapter(0); policy.save_adapter(Path(sys.argv[1]))"
    )
    for name in ("one", "two"):
        subprocess.run([sys.executable, "-c", program, tmp_path / name], check=True)
    files = [tmp_path / name / "pytorch_lora_weights.safetensors" for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()
