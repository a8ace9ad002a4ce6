"""Directories that are no whole SD3 pipeline: named in one line, other kinds before opening."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file, save_file

from star.config.params import load_params
from star.policy.loading import find_pipeline, open_pipeline, open_tokenizers
from star.system.errors import StarError

ROOT = Path(__file__).resolve().parents[2]
MODEL = dataclasses.replace(
    load_params(ROOT / "params.yaml").model, path=str(ROOT / "models/miniature")
)
TRANSFORMER, VAE = (
    f"{part}/diffusion_pytorch_model.safetensors" for part in ("transformer", "vae")
)
Damage = Callable[[Path], None]


def edited(file: str, **values: object) -> Damage:
    """Damage: keys of a JSON file."""

    def damage(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return damage


def weighed(file: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    """Damage: the tensors of a safetensors file."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / file)
        change(tensors)
        save_file(tensors, folder / file, {"format": "pt"})

    return damage


def cut(name: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({name: tensors[name][:-1].contiguous()})


def spoilt(name: str, value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors[name].view(-1)[-1:].fill_(value)


def refusal(folder: Path, open_it: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(StarError) as caught:
        open_it(*arguments)
    message = str(caught.value)
    assert message.startswith(f"model.path '{folder}': ") and "\n" not in message
    assert len(message.replace(str(folder), "")) < 350
    return message


DESCRIBED = {
    "another transformer in the index": (
        edited("model_index.json", transformer=["diffusers", "FluxTransformer2DModel"]),
        "model_index.json, transformer: a FluxTransformer2DModel and not a SD3Transformer2DModel",
    ),
    "another transformer in its configuration": (
        edited("transformer/config.json", _class_name="PixArtTransformer2DModel"),
        "transformer/config.json: a PixArtTransformer2DModel and not a SD3Transformer2DModel",
    ),
    "another scheduler in the index": (
        edited("model_index.json", scheduler=["diffusers", "DDIMScheduler"]),
        "the scheduler is a DDIMScheduler; a flow matching model is needed",
    ),
    "another scheduler in its configuration": (
        edited("scheduler/scheduler_config.json", _class_name="EulerDiscreteScheduler"),
        "the scheduler is a EulerDiscreteScheduler",
    ),
    "code of its own": (
        edited("model_index.json", transformer=["my_transformer", "MyTransformer"]),
        "a MyTransformer and not a SD3Transformer2DModel",
    ),
    "without T5": (
        edited("model_index.json", text_encoder_3=[None, None]),
        "names no text_encoder_3; a pipeline with all three text encoders is needed",
    ),
    "a configuration that is no JSON": (
        lambda folder: (folder / "transformer/config.json").write_text("{"),
        "transformer/config.json cannot be read",
    ),
    "an index that is a list": (
        lambda folder: (folder / "model_index.json").write_text("[]"),
        "model_index.json is no JSON object",
    ),
    "an index that nests too deep": (
        lambda folder: (folder / "model_index.json").write_text("[" * 100_000),
        "model_index.json cannot be read (maximum recursion depth",
    ),
    "a class that is a number": (
        edited("model_index.json", tokenizer=["transformers", 5]),
        "model_index.json, tokenizer: ['transformers', 5] is not a library and a class",
    ),
    "pickled weights": (
        lambda folder: (folder / TRANSFORMER).rename(
            folder / "transformer/diffusion_pytorch_model.bin"
        ),
        "transformer/ has no .safetensors weights",
    ),
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_what_describes_another_pipeline_is_refused_before_a_weight_is_read(
    tmp_path: Path, name: str
) -> None:
    damage, message = DESCRIBED[name]
    folder = Path(copytree(ROOT / "models/miniature", tmp_path / "model"))
    damage(folder)
    assert message in refusal(folder, find_pipeline, dataclasses.replace(MODEL, path=str(folder)))


QUERY = "text_model.encoder.layers.0.self_attn.q_proj.weight"
T5_QUERY = "encoder.block.0.layer.0.SelfAttention.q.weight"
WEIGHED = {
    "a weight of the transformer is missing": (
        weighed(TRANSFORMER, lambda tensors: tensors.pop("proj_out.weight")),
        "SD3Transformer2DModel (transformer/) (1 weights are missing, the first is proj_out.weight)",
    ),
    "a block of the VAE is missing": (
        weighed(
            VAE,
            lambda tensors: [
                tensors.pop(name) for name in list(tensors) if "decoder.conv_out" in name
            ],
        ),
        "AutoencoderKL (vae/) (2 weights are missing, the first is decoder.conv_out.bias)",
    ),
    "a weight of CLIP is missing": (
        weighed("text_encoder_2/model.safetensors", lambda tensors: tensors.pop(QUERY)),
        f"CLIPTextModelWithProjection (text_encoder_2/) (1 weights are missing, the first is {QUERY})",
    ),
    "a weight of T5 is missing": (
        weighed("text_encoder_3/model.safetensors", lambda tensors: tensors.pop(T5_QUERY)),
        f"T5EncoderModel (text_encoder_3/) (1 weights are missing, the first is {T5_QUERY})",
    ),
    "a weight of the transformer has another shape": (
        weighed(TRANSFORMER, cut("proj_out.weight")),
        "proj_out.weight expected shape torch.Size([32, 128]), but got torch.Size([31, 128])",
    ),
    "the transformer's configuration is another": (
        edited("transformer/config.json", num_layers=9),
        "SD3Transformer2DModel (transformer/)",
    ),
    "a weight of CLIP has another shape": (
        weighed("text_encoder/model.safetensors", cut(QUERY)),
        f"(text_encoder/) ({QUERY} has the shape (63, 64), and (64, 64) by the configuration)",
    ),
    "a number of the transformer is not one": (
        weighed(TRANSFORMER, spoilt("transformer_blocks.3.attn.to_k.weight", float("nan"))),
        "transformer_blocks.3.attn.to_k.weight has numbers that are not finite",
    ),
    "a number of T5 is infinite": (
        weighed("text_encoder_3/model.safetensors", spoilt(T5_QUERY, float("-inf"))),
        f"{T5_QUERY} has numbers that are not finite",
    ),
    "a file ends too early": (
        lambda folder: (folder / VAE).write_bytes((folder / VAE).read_bytes()[:5000]),
        "AutoencoderKL (vae/)",
    ),
}


@pytest.mark.parametrize("name", WEIGHED)
def test_weights_that_do_not_fill_the_pipeline_are_refused(tmp_path: Path, name: str) -> None:
    """The libraries open most of these, with random numbers in the gaps."""
    damage, message = WEIGHED[name]
    folder = Path(copytree(ROOT / "models/miniature", tmp_path / "model"))
    damage(folder)
    model = dataclasses.replace(MODEL, path=str(folder))
    assert message in refusal(folder, open_pipeline, find_pipeline(model), model, torch.float32)


def test_tokenizers_open_without_the_models(tmp_path: Path) -> None:
    folder = Path(copytree(ROOT / "models/miniature", tmp_path / "model"))
    for file in folder.rglob("*.safetensors"):
        file.write_bytes(b"")
    pipe = open_tokenizers(folder, MODEL)
    assert (
        pipe.transformer is None
        and pipe.tokenizer.model_max_length == 16
        and pipe.tokenizer_3("a cat")["input_ids"]
    )
    (folder / "tokenizer_3/tokenizer.json").write_text("{")
    model = dataclasses.replace(MODEL, path=str(folder))
    assert "cannot be opened as a StableDiffusion3Pipeline" in refusal(
        folder, open_tokenizers, folder, model
    )
