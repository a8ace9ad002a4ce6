"""SD3.5-M's own configuration at tiny width and depth, from prompts to the exported adapter.

What it has and the miniature lacks: dual attention in the first blocks alone, RMS norm of queries
and keys, 16 latent channels, a VAE of factor 8 with shift and scale, scheduler shift 3, two CLIP
encoders of different width whose features are padded to T5's, 77 and 128 text tokens, a fused
attention kernel, guidance in rollout, update and evaluation, and its recipe of steps (all but the
last are trained, noise differs within a group). Widths, depths and vocabularies are small, and the
weights random.
"""

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
from star.config.params import Params
from star.config.reading import load_params
from star.policy.sd3 import load_policy
from star.training.trainer import ALGORITHMS
from tests.helpers.lines import read_lines
from tests.helpers.smoke import ROOT, smoke_values
from tests.helpers.training import CPU, FORWARD

pytestmark = pytest.mark.slow

CLIP_TOKENS, T5_TOKENS, T5_WIDTH = 77, 128, 64
TASKS = ("geneval", "ocr", "preference")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """The pipeline's directory; its numbers are in tests/data/sd35_shape.json."""
    shape = json.loads((ROOT / "tests/data/sd35_shape.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    parts = {
        "transformer": SD3Transformer2DModel.from_config(shape["transformer"]),
        "vae": AutoencoderKL.from_config(shape["vae"]),
        "scheduler": FlowMatchEulerDiscreteScheduler.from_config(shape["scheduler"]),
    }
    for number in ("", "_2", "_3"):
        tokenizer = AutoTokenizer.from_pretrained(ROOT / f"models/miniature/tokenizer{number}")
        config = {"vocab_size": len(tokenizer), **shape[f"text_encoder{number}"]}
        if number == "_3":
            encoder = T5EncoderModel(T5Config(**config))
        else:
            tokenizer.model_max_length = CLIP_TOKENS
            special = ("bos_token_id", "eos_token_id", "pad_token_id")
            config |= {name: getattr(tokenizer, name) for name in special}
            encoder = CLIPTextModelWithProjection(CLIPTextConfig(**config))
        parts |= {f"tokenizer{number}": tokenizer, f"text_encoder{number}": encoder}
    folder = tmp_path_factory.mktemp("sd35")
    StableDiffusion3Pipeline(**parts).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def values(model: Path) -> dict:
    """The smoke test's small counts with SD3.5-M's recipe."""
    values = smoke_values()
    values["model"] |= {"path": str(model), "prompt_cache": str(model / "prompts")}
    values["model"] |= {"resolution": 64, "t5_tokens": T5_TOKENS}
    values["model"] |= {"precision": "bf16", "guidance_scale": 4.5}
    values["rollout"] |= {"steps": 4, "window": [0, 3], "batch": 4}
    values["rollout"] |= {"noise_level": 0.7, "same_latent": False}
    values["allocation"] |= {"blocks": "all"}
    values["train"] |= {"kl_beta": 0.04, "updates_per_epoch": 2, "clip_range": 1.0e-4}
    return values


def star(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def write(path: Path, values: dict, **model: object) -> Path:
    changed = values | {"model": values["model"] | model}
    path.write_text(yaml.safe_dump(changed), encoding="utf-8")
    return path


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_prompts_to_exported_adapter(
    algorithm: str,
    values: dict,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Random images hold no object and no letter: the preference task has something to learn."""
    # SD3.5-M's 1,229 tokens are past it.
    monkeypatch.setattr("star.method.attention.PLAIN_TOKENS", 0)
    changes: dict[str, object] = {}
    if algorithm != "flow_grpo":  # without guidance; one update: AWM reads maps as it trains
        changes = {"guidance_scale": 1.0}
        train = {"algorithm": algorithm, "kl_beta": 0.0, "updates_per_epoch": 1}
        forward = {**FORWARD[algorithm], "anchor_to": "base"}
        values = values | {
            name: values[name] | new for name, new in (("train", train), ("forward", forward))
        }
    params = write(tmp_path / "params.yaml", values, **changes)
    exact = write(tmp_path / "float32.yaml", values, precision="no", **changes)
    common, core = ("--params", params), tmp_path / "core"
    for task in TASKS:
        made = {
            split: tmp_path / "prompts" / task / f"{split}.jsonl" for split in ("train", "test")
        }
        files = "--train", made["train"], "--test", made["test"]
        star("prompts", *common, "--task", task, *files)
        for split, file in made.items():
            output = core / task / f"{split}.jsonl"
            star("core", *common, "--prompts", file, "--output", output)
    training = tmp_path / "train"
    folders = "--state", tmp_path / "state", "--output", training
    what = "--task", "preference", "--method", "star", "--prompts", core / "preference/train.jsonl"
    star("train", *common, *what, "--held-out", core / "preference/test.jsonl", *folders)
    said = capsys.readouterr().out.splitlines()
    assert "preference star: 1 process on cpu, precision bf16" in said
    assert "preference star: attention kernel flash_cpu" in said
    base, *log = read_lines(training / "log.jsonl")
    assert base["epoch"] == 0 and 0 < base["held_out"] < 2
    assert [line["epoch"] for line in log] == [1, 2]
    for line in log:
        assert line["first_ratio_error"] == (0 if algorithm == "flow_grpo" else None)
        assert 0 < line["map_entropy"] < 1
        assert line["reward_std"] > 0 and line["grad_norm"] > 0
    moved = "kl" if algorithm == "flow_grpo" else "drift"
    assert log[1][moved] > log[0][moved] >= 0, "the first update starts at the base"
    weights = load_file(training / "adapter/pytorch_lora_weights.safetensors")
    assert any(np.abs(value).max() > 0 for key, value in weights.items() if "lora_B" in key)
    assert not any("attn2" in key for key in weights)

    def evaluate(file: Path, output: Path) -> Path:
        given = "--prompts-dir", core, "--adapter", training / "adapter"
        folders = "--state", tmp_path / "drawn", "--output", output
        checkpoint = "--checkpoint", "preference-star"
        star("evaluate", "--params", file, *checkpoint, *given, *folders)
        assert set(json.loads((output / "scores.json").read_text())["benchmarks"]) == set(TASKS)
        return output

    done = "--training", training, "--evaluation", evaluate(params, tmp_path / "scores")
    star("export", *common, *done, "--output", tmp_path / "out")
    drawn = evaluate(exact, tmp_path / "float32")
    assert_plain_diffusers_draws_the_same(load_params(exact), drawn, tmp_path / "out")


def assert_plain_diffusers_draws_the_same(params: Params, evaluation: Path, adapter: Path) -> None:
    """As every image that the evaluation in float32 has on disk, from the seed of its line."""
    lines = read_lines(evaluation / "images.jsonl")
    assert {line["task"] for line in lines} == set(TASKS)
    images = [np.asarray(Image.open(evaluation / line["image"])) for line in lines]
    ours = np.stack(images).astype(float)
    assert ours.std() > 1
    pipe = StableDiffusion3Pipeline.from_pretrained(params.model.path, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)

    def drawn() -> np.ndarray:
        made = pipe(
            [line["prompt"] for line in lines],
            generator=[torch.Generator().manual_seed(line["seed"]) for line in lines],
            guidance_scale=params.model.guidance_scale,
            max_sequence_length=params.model.t5_tokens,
            num_inference_steps=params.evaluate.steps,
            height=params.model.resolution,
            width=params.model.resolution,
            output_type="np",
        )
        return (made.images * 255).round()

    base = drawn()
    pipe.load_lora_weights(adapter)
    assert np.abs(drawn() - ours).max() <= 1
    assert np.abs(base - ours).max() > 1, "the adapter changes what is drawn"


def test_text_has_the_lengths_of_the_recipe(values: dict, tmp_path: Path) -> None:
    params = load_params(write(tmp_path / "params.yaml", values, prompt_cache=None))
    conditioning = load_policy(params.model, CPU).encode(["a photo of a red car"])
    assert conditioning.embeds.shape == (1, CLIP_TOKENS + T5_TOKENS, T5_WIDTH)
