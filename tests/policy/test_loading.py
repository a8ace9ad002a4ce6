"""Directories that are no whole SD3 pipeline: named in one line, other kinds before opening."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from star.policy.loading import find_pipeline, open_pipeline, open_tokenizers
from star.system.errors import StarError
from tests.helpers.training import EXACT

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
CLIP, CLIP_2, T5 = (f"text_encoder{part}/model.safetensors" for part in ("", "_2", "_3"))
INDEX, CONFIG = "model_index.json", "transformer/config.json"
SCHEDULER = "scheduler/scheduler_config.json"
QUERY = "text_model.encoder.layers.0.self_attn.q_proj.weight"
KEY = "transformer_blocks.3.attn.to_k.weight"
T5_QUERY = "encoder.block.0.layer.0.SelfAttention.q.weight"
Damage = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the miniature."""
    return Path(shutil.copytree(EXACT.path, tmp_path / "model"))


def edited(file: str, **values: object) -> Damage:
    """Damage: other values in a JSON file."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(content | values))

    return damage


def written(file: str, text: str) -> Damage:
    return lambda folder: (folder / file).write_text(text)


def weighed(file: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    """Damage: other tensors in a safetensors file."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / file)
        change(tensors)
        save_file(tensors, folder / file, {"format": "pt"})

    return damage


def without(file: str, part: str) -> Damage:
    return weighed(file, lambda tensors: [tensors.pop(n) for n in list(tensors) if part in n])


def cut(file: str, name: str) -> Damage:
    return weighed(file, lambda tensors: tensors.update({name: tensors[name][:-1].contiguous()}))


def spoilt(file: str, name: str, value: float) -> Damage:
    return weighed(file, lambda tensors: tensors[name].view(-1)[-1:].fill_(value))


def refusal(folder: Path, open_it: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(StarError) as caught:
        open_it(*arguments)
    message = str(caught.value)
    assert message.startswith(f"model.path '{folder}': ") and "\n" not in message
    assert len(message.replace(str(folder), "")) < 350
    return message


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no such directory"),
        (lambda folder: (folder / INDEX).unlink(), "model_index.json is missing"),
        (written(INDEX, "[]"), "model_index.json is no JSON object"),
        (written(INDEX, "[" * 100_000), "cannot be read (maximum recursion depth"),
        (edited(INDEX, _class_name="FluxPipeline"), "a FluxPipeline, not a StableDiffusion3"),
        (edited(INDEX, transformer=["diffusers", "FluxTransformer2DModel"]), "and not a SD3Trans"),
        (edited(INDEX, transformer=["my_transformer", "MyTransformer"]), "a MyTransformer and not"),
        (
            edited(INDEX, tokenizer=["my_tokenizer", "CLIPTokenizer"]),
            "'my_tokenizer' is not run",
        ),
        (
            edited(INDEX, text_encoder_3=[None, None]),
            "for text_encoder_3, but [None, None];",
        ),
        (edited(INDEX, tokenizer=["transformers", 5]), "for tokenizer, but ['transformers', 5]"),
        (edited(INDEX, scheduler=["diffusers", "DDIMScheduler"]), "scheduler is a DDIMScheduler"),
        (
            edited(SCHEDULER, _class_name="EulerDiscreteScheduler"),
            "flow matching model is needed",
        ),
        (edited(CONFIG, _class_name="PixArtModel"), "config.json: a PixArtModel and not a SD3"),
        (written(CONFIG, "{"), "transformer/config.json cannot be read"),
        (lambda folder: shutil.rmtree(folder / "text_encoder_3"), "text_encoder_3/ is missing"),
        (lambda folder: (folder / VAE).rename(folder / "vae/a.bin"), "vae/ has no .safetensors"),
        (
            lambda folder: (folder / VAE).rename((folder / VAE).with_suffix(".fp16.safetensors")),
            "vae/ has only a variant of the weights, diffusion_pytorch_model.fp16.safetensors",
        ),
        (
            edited("text_encoder_3/config.json", quantization_config={"quant_method": "quanto"}),
            "text_encoder_3/ has quantised weights",
        ),
    ],
)
def test_what_is_described_otherwise_is_refused_before_a_weight_is_read(folder, damage, message):
    damage(folder)
    model = dataclasses.replace(EXACT, path=str(folder))
    assert message in refusal(folder, find_pipeline, model)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            without(TRANSFORMER, "proj_out.weight"),
            "(transformer/) (1 weights are missing",
        ),
        (without(VAE, "decoder.conv_out"), "(vae/) (2 weights are missing, the first is decoder"),
        (
            without(CLIP_2, QUERY),
            f"_2/) (1 weights are missing, the first is {QUERY})",
        ),
        (without(T5, T5_QUERY), f"_3/) (1 weights are missing, the first is {T5_QUERY})"),
        (
            cut(TRANSFORMER, "proj_out.weight"),
            "proj_out.weight expected shape torch.Size([32,",
        ),
        (edited(CONFIG, num_layers=9), "SD3Transformer2DModel (transformer/)"),
        (cut(CLIP, QUERY), f"(text_encoder/) ({QUERY} has the shape (63, 64), and (64, 64) by the"),
        (spoilt(TRANSFORMER, KEY, float("nan")), f"{KEY} has numbers that are not finite"),
        (spoilt(T5, T5_QUERY, float("-inf")), f"{T5_QUERY} has numbers that are not finite"),
        (lambda f: (f / VAE).write_bytes((f / VAE).read_bytes()[:5000]), "AutoencoderKL (vae/)"),
    ],
)
def test_weights_that_do_not_fill_the_pipeline_are_refused(folder, damage, message):
    """The libraries open most of these, with random numbers in the gaps."""
    damage(folder)
    model = dataclasses.replace(EXACT, path=str(folder))
    assert message in refusal(folder, open_pipeline, find_pipeline(model), model, torch.float32)


def test_tokenizers_open_without_the_models(folder):
    for file in folder.rglob("*.safetensors"):
        file.write_bytes(b"")
    pipe = open_tokenizers(folder, EXACT)
    assert pipe.transformer is None and pipe.tokenizer.model_max_length == 16
    assert pipe.tokenizer_3("a cat")["input_ids"]
    (folder / "tokenizer_3/tokenizer.json").write_text("{")
    model = dataclasses.replace(EXACT, path=str(folder))
    message = refusal(folder, open_tokenizers, folder, model)
    assert "cannot be opened as a StableDiffusion3Pipeline" in message
