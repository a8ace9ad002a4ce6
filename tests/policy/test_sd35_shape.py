"""SD3.5-M's own configuration at tiny width and depth, from prompts to the exported adapter: what
the miniature lacks.

Of the real model: dual attention in the first blocks and not in the last ones, RMS norm of queries
and keys, 16 latent channels, a VAE of factor 8 with shift and scale, scheduler shift 3, two CLIP
encoders of different width whose features are padded to T5's, 77 and 128 text tokens, attention by
a fused kernel, guidance in rollout, update and evaluation, and its recipe of steps (all but the
last are trained, noise differs within a group). Widths, depths and vocabularies are small, and the
weights random."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from PIL import Image
from safetensors.numpy import load_file
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from star.cli import main
from star.config.params import Params, load_params
from star.policy.sd3 import load_policy

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
CLIP_WIDTHS, T5_WIDTH = (16, 24), 64
CLIP_TOKENS, T5_TOKENS = 77, 128
TASKS = ("geneval", "ocr", "preference")


def clip_encoder(tokenizer, width: int, activation: str) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=CLIP_TOKENS,
            hidden_act=activation,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """The pipeline's directory."""
    torch.manual_seed(0)
    names = ("tokenizer", "tokenizer_2", "tokenizer_3")
    clip, clip_2, t5 = (
        AutoTokenizer.from_pretrained(ROOT / "models/miniature" / name) for name in names
    )
    clip.model_max_length = clip_2.model_max_length = CLIP_TOKENS
    transformer = SD3Transformer2DModel(
        sample_size=128,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=4,
        num_attention_heads=2,
        attention_head_dim=16,
        joint_attention_dim=T5_WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=sum(CLIP_WIDTHS),
        pos_embed_max_size=384,
        dual_attention_layers=(0, 1),
        qk_norm="rms_norm",
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=2,
        norm_num_groups=4,
        latent_channels=16,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    pipe = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=clip_encoder(clip, CLIP_WIDTHS[0], "quick_gelu"),
        tokenizer=clip,
        text_encoder_2=clip_encoder(clip_2, CLIP_WIDTHS[1], "gelu"),
        tokenizer_2=clip_2,
        text_encoder_3=T5EncoderModel(
            T5Config(
                vocab_size=len(t5), d_model=T5_WIDTH, d_kv=16, d_ff=64, num_layers=2, num_heads=2
            )
        ),
        tokenizer_3=t5,
    )
    folder = tmp_path_factory.mktemp("sd35")
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def values(model: Path) -> dict:
    """The smoke test's small counts with SD3.5-M's recipe."""
    values = yaml.safe_load((ROOT / "tests/smoke/params.yaml").read_text(encoding="utf-8"))
    values["model"] |= {
        "path": str(model),
        "resolution": 64,
        "t5_tokens": T5_TOKENS,
        "precision": "bf16",
    }
    values["model"] |= {"guidance_scale": 4.5, "prompt_cache": str(model / "prompts")}
    values["rollout"] |= {
        "steps": 4,
        "window": [0, 3],
        "noise_level": 0.7,
        "same_latent": False,
        "batch": 4,
    }
    values["allocation"] |= {"blocks": "all"}
    values["train"] |= {"kl_beta": 0.04, "updates_per_epoch": 2, "clip_range": 1.0e-4}
    values["rewards"]["preference"]["path"] = str(ROOT / "models/miniature-preference")
    return values


def star(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def test_prompts_to_exported_adapter(
    values: dict,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Random images hold no object and no letter, so it is the preference task that has something
    to learn."""
    monkeypatch.setattr(
        "star.method.attention.PLAIN_TOKENS", 0
    )  # SD3.5-M's 1,229 tokens are past it
    params, exact = tmp_path / "params.yaml", tmp_path / "float32.yaml"
    params.write_text(yaml.safe_dump(values), encoding="utf-8")
    exact.write_text(
        yaml.safe_dump(values | {"model": values["model"] | {"precision": "no"}}), encoding="utf-8"
    )
    common = ("--params", params)
    for task in TASKS:
        raw, core = tmp_path / "prompts" / task, tmp_path / "core" / task
        star(
            "prompts",
            *common,
            "--task",
            task,
            "--train",
            raw / "train.jsonl",
            "--test",
            raw / "test.jsonl",
        )
        for split in ("train.jsonl", "test.jsonl"):
            star("core", *common, "--prompts", raw / split, "--output", core / split)
    training, scores = tmp_path / "train", tmp_path / "scores"
    files = (
        "--prompts",
        tmp_path / "core/preference/train.jsonl",
        "--state",
        tmp_path / "state",
        "--output",
        training,
    )
    star("train", *common, "--task", "preference", "--method", "star", *files)
    assert "precision bf16, attention kernel flash_cpu\n" in capsys.readouterr().out
    log = [json.loads(line) for line in (training / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log] == [1, 2] and all(
        line["first_ratio_error"] == 0 for line in log
    )
    assert all(
        line["reward_std"] > 0 and line["grad_norm"] > 0 and 0 < line["map_entropy"] < 1
        for line in log
    )
    assert log[1]["kl"] > log[0]["kl"] > 0, "the first update starts at the base"
    weights = load_file(training / "adapter/pytorch_lora_weights.safetensors")
    assert any(np.abs(value).max() > 0 for key, value in weights.items() if "lora_B" in key)
    assert not any("attn2" in key for key in weights)

    def evaluate(file: Path, output: Path) -> None:
        draw = (
            "--prompts-dir",
            tmp_path / "core",
            "--adapter",
            training / "adapter",
            "--state",
            tmp_path / "drawn",
        )
        star(
            "evaluate",
            "--params",
            file,
            "--checkpoint",
            "preference-star",
            *draw,
            "--output",
            output,
        )
        assert set(json.loads((output / "scores.json").read_text())["benchmarks"]) == set(TASKS)

    evaluate(params, scores)
    star(
        "export",
        *common,
        "--training",
        training,
        "--evaluation",
        scores,
        "--output",
        tmp_path / "out",
    )
    evaluate(exact, tmp_path / "float32")
    assert_plain_diffusers_draws_the_same(
        load_params(exact), tmp_path / "float32", tmp_path / "out"
    )


def assert_plain_diffusers_draws_the_same(params: Params, evaluation: Path, adapter: Path) -> None:
    """As every image that the evaluation in float32 has on disk, from the seed of its line."""
    lines = [json.loads(line) for line in (evaluation / "images.jsonl").read_text().splitlines()]
    assert {line["task"] for line in lines} == set(TASKS)
    ours = np.stack([np.asarray(Image.open(evaluation / line["image"])) for line in lines]).astype(
        float
    )
    assert ours.std() > 1
    pipe = StableDiffusion3Pipeline.from_pretrained(params.model.path, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)

    def drawn() -> np.ndarray:
        model, side = params.model, params.model.resolution
        settings = {"guidance_scale": model.guidance_scale, "max_sequence_length": model.t5_tokens}
        settings |= {"num_inference_steps": params.evaluate.steps, "height": side, "width": side}
        noise = [torch.Generator().manual_seed(line["seed"]) for line in lines]
        prompts = [line["prompt"] for line in lines]
        return (pipe(prompts, generator=noise, output_type="np", **settings).images * 255).round()

    base = drawn()
    pipe.load_lora_weights(adapter)
    assert np.abs(drawn() - ours).max() <= 1
    assert np.abs(base - ours).max() > 1, "the adapter changes what is drawn"


def test_text_has_the_lengths_of_the_recipe(values: dict, tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text(
        yaml.safe_dump(values | {"model": values["model"] | {"prompt_cache": None}}),
        encoding="utf-8",
    )
    conditioning = load_policy(load_params(params).model, torch.device("cpu")).encode(
        ["a photo of a red car"]
    )
    assert conditioning.embeds.shape == (1, CLIP_TOKENS + T5_TOKENS, T5_WIDTH)
