"""`star plan` against the modules: parameters, operations and what autograd keeps, by formula and
counted."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from peft import LoraConfig
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from star.method import attention
from star.plan import memory, operations, scorers, shapes
from star.policy import conditioning, sd3
from star.training import samples

MINIATURE = Path("models/miniature")
RANK, IMAGE, TEXT, BATCH = 5, 36, 11, 3
TINY = {
    **{"sample_size": 16, "patch_size": 2, "in_channels": 8, "out_channels": 8, "num_layers": 3},
    **{
        "attention_head_dim": 16,
        "num_attention_heads": 3,
        "joint_attention_dim": 40,
        "caption_projection_dim": 48,
    },
    **{
        "pooled_projection_dim": 24,
        "pos_embed_max_size": 16,
        "dual_attention_layers": (0, 1),
        "qk_norm": "rms_norm",
    },
}
VAE = {
    **{
        "block_out_channels": (8, 16, 24),
        "layers_per_block": 2,
        "latent_channels": 4,
        "norm_num_groups": 4,
    },
    **{
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
    },
}


def config(part: Path) -> dict:
    return json.loads((part / "config.json").read_text())


def of(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def build(kind, values: dict) -> torch.nn.Module:
    with torch.device("meta"):
        return kind.from_config(values) if hasattr(kind, "from_config") else kind(values)


@pytest.mark.parametrize(
    "values",
    [
        TINY,
        {**TINY, "dual_attention_layers": (), "qk_norm": None},
        config(MINIATURE / "transformer"),
    ],
)
def test_the_transformers_parameters_and_its_adapters(values):
    module, counted = build(SD3Transformer2DModel, values), shapes.Transformer.read(values)
    assert counted.parameters() == of(module)
    assert counted.positions == module.pos_embed.pos_embed.numel()
    module.requires_grad_(False).add_adapter(LoraConfig(r=RANK, target_modules=sd3.LORA_TARGETS))
    assert counted.adapter(RANK) == sum(p.numel() for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "values", [VAE, {**VAE, "mid_block_add_attention": False}, config(MINIATURE / "vae")]
)
def test_the_vaes_parameters(values):
    assert shapes.Vae.read(values).parameters() == of(build(AutoencoderKL, values))


def test_the_encoders_parameters():
    pipeline = shapes.read_pipeline(str(MINIATURE))
    kinds = [(CLIPTextModelWithProjection, CLIPTextConfig)] * 2 + [(T5EncoderModel, T5Config)]
    for number, ((kind, settings), counted) in enumerate(
        zip(kinds, pipeline.encoders, strict=True), 1
    ):
        folder = MINIATURE / f"text_encoder{f'_{number}' if number > 1 else ''}"
        assert counted.parameters == of(build(kind, settings.from_pretrained(folder)))
    halves = scorers.read_clip("models/miniature-preference")
    model = build(CLIPModel, CLIPModel.config_class.from_pretrained("models/miniature-preference"))
    assert sum(half.parameters for half in halves) == of(model)


def test_the_constants_give_the_known_sizes():
    pipeline = shapes.read_pipeline(shapes.SD35_MEDIUM_ID)
    assert [encoder.parameters for encoder in pipeline.encoders] == [
        123_650_304,
        694_659_840,
        4_762_310_656,
    ]
    assert pipeline.transformer.width == 1536 and pipeline.image_tokens(512) == 1024
    whole = {
        **TINY,
        **shapes.SD35_MEDIUM["transformer"],
        "caption_projection_dim": 1536,
        "out_channels": 16,
    }
    assert (
        pipeline.transformer.parameters()
        == of(build(SD3Transformer2DModel, whole))
        == 2_243_171_520
    )


def test_constants_of_modules_that_need_torch():
    assert memory.PLAIN_TOKENS == attention.PLAIN_TOKENS and memory.ENCODED == sd3.ENCODED
    assert memory.KEPT == conditioning.KEPT and memory.SHEET_PROMPTS == samples.SHEET_PROMPTS


def adapted(kernel: attention.Kernel) -> SD3Transformer2DModel:
    torch.manual_seed(0)
    module = SD3Transformer2DModel(**TINY).requires_grad_(False).eval()
    attention.use_joint_processor(module, kernel)
    module.add_adapter(LoraConfig(r=RANK, target_modules=sd3.LORA_TARGETS))
    return module


def run(module: SD3Transformer2DModel) -> torch.Tensor:
    side = 2 * round(IMAGE**0.5)
    return module(
        hidden_states=torch.randn(BATCH, 8, side, side),
        timestep=torch.full((BATCH,), 500.0),
        encoder_hidden_states=torch.randn(BATCH, TEXT, 40),
        pooled_projections=torch.randn(BATCH, 24),
        return_dict=False,
    )[0]


def test_operations_are_those_that_torch_counts():
    module, counted = adapted(attention.plain_attention), shapes.Transformer.read(TINY)
    with FlopCounterMode(display=False) as forward:
        output = run(module)
    assert operations.forward(counted, IMAGE, TEXT, RANK) * BATCH == forward.get_total_flops()
    with FlopCounterMode(display=False) as backward:
        output.sum().backward()
    expected = operations.backward(counted, IMAGE, TEXT, RANK, fused=False) * BATCH
    assert expected == pytest.approx(backward.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("attended", [True, False])
def test_the_decoders_operations(attended):
    values = {**VAE, "mid_block_add_attention": attended}
    module = build(AutoencoderKL, values)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.device("meta"):
        module.decode(torch.zeros(1, 4, 8, 8))
    assert operations.decode(shapes.Vae.read(values), 32) == pytest.approx(
        counter.get_total_flops(), rel=0.01
    )


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_the_graph_is_what_autograd_keeps(mixed, fused):
    """Every storage that the forward pass saves for the backward one, the module's own weights left
    out."""
    fast = attention.LOG_SUM_EXP_KERNELS["cpu"]["flash_cpu"]
    module = adapted(fast if fused else attention.plain_attention)
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
        torch.autocast("cpu", enabled=mixed),
    ):
        output = run(module)
    saved = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    value = 2 if mixed else 4
    sequence = memory.Sequence(
        shapes.Transformer.read(TINY), IMAGE, TEXT, RANK, value, value, mixed, fused
    )
    assert sequence.graph(BATCH, checkpointing=False) == pytest.approx(saved, rel=0.01)
    del output
