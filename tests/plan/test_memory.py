"""`star plan`'s memory and operations against what modules do, and sums by hand."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from peft import LoraConfig
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

from star.config.reading import load_params
from star.method import attention
from star.method.precision import hold_products
from star.plan.activations import Activations
from star.plan.configs import SD35_MEDIUM, known_models
from star.plan.models import LiveBytes
from star.plan.operations import count_costs
from star.plan.reward_models import Scorer, detection_bytes
from star.policy.sd3 import LORA_TARGETS
from star.rewards import mask2former
from tests.helpers.plans import estimate, memory, pipeline
from tests.helpers.training import changed

PARAMS = load_params(Path("presets/miniature-full.yaml"))
PUBLISHED = changed(
    PARAMS,
    model={
        **{"path": SD35_MEDIUM, "resolution": 512, "t5_tokens": 128},
        **{"guidance_scale": 4.5, "lora_rank": 32},
    },
    rollout={"steps": 10, "window": [0, 9], "same_latent": False, "batch": 9},
    train={"prompts_per_epoch": 48, "group_size": 24, "kl_beta": 0.04},
)
FULL, SAVED = "update, gradient_checkpointing false", "update, gradient_checkpointing true"
RANK, IMAGE, TEXT, BATCH = 5, 36, 11, 3
TINY = {
    **{"sample_size": 16, "patch_size": 2, "in_channels": 8, "out_channels": 8, "num_layers": 3},
    **{"attention_head_dim": 16, "num_attention_heads": 3, "joint_attention_dim": 40},
    **{"caption_projection_dim": 48, "pooled_projection_dim": 24, "pos_embed_max_size": 16},
    **{"dual_attention_layers": (0, 1), "qk_norm": "rms_norm"},
}


def test_memory_follows_the_parameters():
    base = memory(PUBLISHED)
    assert base.peak == "update"
    assert base.total == sum(base.resident.values()) + max(base.phases.values())
    cached = memory(changed(PUBLISHED, model={"prompt_cache": "cache"}))
    encoders = base.resident["text encoders"]
    assert cached.resident["text encoders"] == 0 < encoders and cached.total < base.total
    assert cached.phases["encoding prompts"] > encoders, "they are there while they encode"
    saving = {"gradient_checkpointing": True, "vae_slicing": True}
    lighter, sizes = memory(changed(PUBLISHED, model=saving)), base.alternatives
    assert lighter.alternatives == sizes and sizes[SAVED] < sizes[FULL] / 5
    assert sizes["decoding, vae_slicing true"] < sizes["decoding, vae_slicing false"] / 5
    assert base.phases["update"] - lighter.phases["update"] == sizes[FULL] - sizes[SAVED]
    assert memory(PUBLISHED, processes=8).trajectories == base.trajectories / 8
    denoised = (base.phases["denoising"] - base.trajectories) / PUBLISHED.rollout.batch
    assert lighter.phases["sample grid"] == denoised * 16, "all its images are denoised at once"


def test_what_noised_images_keep_by_hand():
    """48 x 24 images; a latent of 16 x 64 x 64 values, 1,024 locations, 9 levels."""
    nothing = {"kl_beta": 0.0, "updates_per_epoch": 1}
    awm, nft, flow = (
        memory(
            changed(
                PUBLISHED,
                model={"guidance_scale": 1.0},
                train={**nothing, "algorithm": algorithm},
                forward={"draws": 9},
                runs={"ocr": []},
            )
        )
        for algorithm in ("awm", "nft", "flow_grpo")
    )
    latent, maps = 4 * 16 * 64 * 64, 4 * 2 * 9 * 1024
    assert nft.trajectories - awm.trajectories == 1152 * 9 * latent, "velocities of the old policy"
    assert flow.trajectories == nft.trajectories, "latents and means"
    prompt = awm.trajectories // 1152 - (1 + 9) * latent - maps
    assert 0 < prompt < 2e6
    assert nft.resident["old policy"] == nft.resident["LoRA"] and "old policy" not in awm.resident
    assert awm.phases["update"] < flow.phases["update"], "no pass of a KL beside the graph"


def test_an_evaluation_has_the_judge_the_detector_and_the_encoders_on_its_device():
    """Reward models of bytes by hand; the preference task's is a second copy of the judge."""
    scorers = {"geneval": Scorer(300, 70), "ocr": Scorer(0, 0), "preference": Scorer(200, 10)}
    kept, cached = (
        estimate(changed(PUBLISHED, model={"prompt_cache": cache})) for cache in (None, "cache")
    )
    found, own = cached.evaluation(scorers), 200 + 300
    assert found.phases["scoring"] == 200 + 300 + 70
    assert found.phases["encoding prompts"] == cached.encoding + cached.encoders
    assert found.phases["denoising"] - own == cached.denoising(PUBLISHED.evaluate.batch)
    assert found.resident["text encoders"] == 0 and "reward model" not in found.resident
    beside = kept.evaluation(scorers)
    assert beside.resident["text encoders"] == kept.encoders == 2 * 5_580_620_800
    assert beside.phases["encoding prompts"] == kept.encoding + 200, "the judge is there"


def test_the_activations_grow_with_the_batch_and_the_cast_weights_do_not():
    """Three batches in steps of one size: LoRA's cast copies are constant, the rest is linear."""
    one, two, three = (
        memory(changed(PUBLISHED, rollout={"batch": size})).alternatives[FULL]
        for size in (8, 16, 24)
    )
    assert three - two == two - one
    # Two matrices of rank 32 for each of 8 layers, of two bytes a value; the last block has 7.
    assert one - (two - one) == 2 * 2 * 32 * 1536 * (24 * 8 - 1)


def test_the_fullest_moments_of_a_long_text_and_of_sliced_images():
    """The miniature in float32: 448 + 16 text and 64 image tokens, 128 wide; 3 x 64 x 64 pixels.

    In the text's MLP 12 values a text token (block's input, attention's output, sum, norm, 4 before
    and 4 after the GELU) and 7 an image token (input, two attentions' outputs, sum, two norms,
    MLP's output). Images are three times there while grey levels are made of them.
    """
    found = estimate(changed(PARAMS, model={"precision": "no", "t5_tokens": 448}), "cpu")
    assert found.sequence.forward() == 4 * 128 * (12 * 464 + 7 * 64)
    assert found.decoding(64, slicing=True) == 4 * 64 * 3 * (3 * 64 * 64)
    two = found.decoding(1, slicing=True) + 4 * 3 * 64 * 64  # the first image is kept
    assert found.decoding(2, slicing=True) == two


def test_bytes_that_live_together():
    """A view is none; what is freed leaves; oneDNN copies a convolution's input."""
    given, kernel = torch.zeros(1, 2, 8, 8), torch.zeros(3, 2, 1, 1)
    with LiveBytes(copies=True) as live:
        kept = given + 1  # 512 bytes
        other = kept.view(-1) * 2
        del other
        assert (live.now, live.most) == (512, 1024)
        torch.nn.functional.conv2d(kept, kernel)  # 768 bytes made, 512 copied
    assert (live.now, live.most) == (512, 512 + 768 + 512)


def adapted(kernel: attention.Kernel) -> SD3Transformer2DModel:
    torch.manual_seed(0)
    module = SD3Transformer2DModel(**TINY).requires_grad_(False).eval()
    attention.use_joint_processor(module, kernel)
    module.add_adapter(LoraConfig(r=RANK, target_modules=LORA_TARGETS))
    return module


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_the_graph_is_what_autograd_keeps(mixed, fused):
    """Every storage that the forward pass saves for the backward one, but the module's own."""
    fast = attention.LOG_SUM_EXP_KERNELS["cpu"]["flash_cpu"]
    module = adapted(fast if fused else attention.plain_attention)
    hold_products(module, "bf16" if mixed else "no")
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    side = 2 * round(IMAGE**0.5)
    inputs = (torch.randn(BATCH, 8, side, side), torch.randn(BATCH, TEXT, 40))
    pooled, timestep = torch.randn(BATCH, 24), torch.full((BATCH,), 500.0)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
        torch.autocast("cpu", enabled=mixed),
    ):
        output = module(*inputs, pooled, timestep).sample
    saved = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    value = 2 if mixed else 4
    sequence = Activations(module.config, IMAGE, TEXT, RANK, value, value, mixed, fused)
    assert sequence.graph(BATCH, checkpointing=False) == pytest.approx(saved, rel=0.01)
    del output


@pytest.mark.slow
def test_operations_are_those_of_a_training_step():
    """The miniature, run: with checkpointing, and without its adapter."""
    model = dataclasses.replace(PARAMS.model, gradient_checkpointing=True)
    found, parts = count_costs(pipeline(model), model, fused=False), pipeline(model)
    config = parts.transformer.config
    latent = torch.zeros(1, *parts.latent(model.resolution), device="meta")
    text = torch.zeros(1, parts.tokens(model)[1], config.joint_attention_dim, device="meta")
    pooled = torch.zeros(1, config.pooled_projection_dim, device="meta")

    def predict() -> torch.Tensor:
        return parts.transformer(latent, text, pooled, torch.zeros(1, device="meta")).sample

    parts.transformer.enable_gradient_checkpointing()
    with FlopCounterMode(display=False) as training:
        predict().sum().backward()
    parts.transformer.disable_gradient_checkpointing()
    parts.transformer.disable_adapters()
    with FlopCounterMode(display=False) as reference, torch.no_grad():
        predict()
    parts.transformer.enable_adapters()
    assert found.training == training.get_total_flops()
    assert found.reference == reference.get_total_flops() < found.forward
    whole = count_costs(parts, PARAMS.model, fused=False)
    assert 1.5 * whole.forward < whole.training < found.training
    assert count_costs(parts, model, fused=True).training > found.training, "scores once more"


@pytest.mark.slow
def test_the_fullest_moment_of_detection():
    """The published model's own size on an image's own size, with tensors that have no values."""
    _, sizes = mask2former.network_input(torch.zeros(1, 512, 512, 3, dtype=torch.uint8))
    values = known_models()["facebook/mask2former-swin-small-coco-instance"]
    config, most = Mask2FormerConfig.from_dict(values), []
    with FakeTensorMode(), torch.no_grad():
        detector = Mask2FormerForUniversalSegmentation(config).eval()
        for images in (2, 3):
            with LiveBytes() as live:
                detector(pixel_values=torch.zeros(images, 3, *sizes.padded))
            most.append(live.most)
    counted = detection_bytes(config)
    assert counted == pytest.approx(most[1] - most[0], rel=0.05)
    assert 2 * counted == pytest.approx(most[0], rel=0.05), "little is there whatever the batch"


def test_the_measurement_agrees_in_every_phase():
    """`benchmarks/memory.py`'s committed bytes, and what is estimated now."""
    from benchmarks.memory import CASES, estimated
    from benchmarks.memory import changed as case_of

    figures = json.loads(Path("benchmarks/figures/memory.json").read_text())["cases"]
    assert list(figures) == list(CASES)
    for case, phases in figures.items():
        for phase, planned in estimated(case_of(PARAMS, case)).items():
            assert planned == pytest.approx(phases[phase]["measured"], rel=0.15), (case, phase)


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the kernel's high-water mark is Linux's"
)
def test_the_memory_of_a_training_is_the_estimated_one():
    from benchmarks.memory import compare

    ratios = {
        phase: found["ratio"]
        for phase, found in compare("vae_slicing", Path("params.yaml")).items()
    }
    assert ratios == pytest.approx(dict.fromkeys(ratios, 1), abs=0.15)
