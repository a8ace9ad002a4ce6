"""CLIP models for the rewards: opened with their processor, features in float32 with unit norm.

Weights are float32. With the precision ``bf16`` the network runs under autocast: products of
matrices in bfloat16, norms and the sum that runs through the blocks in float32; bfloat16 weights
would round that sum in every block."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import AutoProcessor, CLIPModel, ProcessorMixin

from star.system.hub import DESCRIPTIONS, model_folder
from star.system.pretrained import OPENING_ERRORS, cannot_open, find_model, open_model

# Models published without a processor of their own -> where the processor lies: its newest commit
# there, as the model's `revision` is one of another repository. It holds a tokenizer and the
# images' size, mean and spread.
PROCESSORS = {"yuvalkirstain/PickScore_v1": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"}
BATCH = 64  # images or texts a forward pass


def open_clip(
    path: str, revision: str | None = None, key: str = "rewards.preference.path"
) -> tuple[CLIPModel, ProcessorMixin]:
    """A CLIP model and its processor, which prepares images with PIL; see
    `star.system.pretrained.open_model`.

    Raises:
        StarError: either cannot be opened; begins with ``key``.
    """
    return open_model(CLIPModel, path, revision, key), _open_processor(path, revision, key)


def find_clip(path: str, revision: str | None, key: str) -> None:
    """Have all of a CLIP model on this machine, without reading its weights; raises as
    `open_clip`."""
    find_model(CLIPModel, path, revision, key)
    _open_processor(path, revision, key)


def _open_processor(path: str, revision: str | None, key: str) -> ProcessorMixin:
    source = PROCESSORS.get(path, path)
    folder = model_folder(source, revision if source == path else None, key, DESCRIPTIONS)
    try:
        return AutoProcessor.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, backend="pil"
        )
    except OPENING_ERRORS as error:
        raise cannot_open("CLIP processor", source, key, error) from error


@torch.no_grad()
def image_features(
    model: CLIPModel,
    processor: ProcessorMixin,
    images: Sequence[np.ndarray] | np.ndarray,
    precision: str = "float32",
) -> Tensor:
    """Unit features float32 (n, d) of uint8 images (height, width, 3), which may differ in
    size."""
    return torch.cat(
        [_image_features(model, processor, part, precision) for part in _parts(images)]
    )


@torch.no_grad()
def text_features(
    model: CLIPModel, processor: ProcessorMixin, texts: Sequence[str], precision: str = "float32"
) -> Tensor:
    """Unit features float32 (n, d); texts longer than the text model's positions are cut."""
    return torch.cat([_text_features(model, processor, part, precision) for part in _parts(texts)])


def _parts(items: Sequence | np.ndarray) -> list:
    return [items[start : start + BATCH] for start in range(0, len(items), BATCH)]


def _computing(model: CLIPModel, precision: str) -> torch.autocast:
    """Autocast to bfloat16, or none, whatever the caller runs in."""
    return torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16")


def _image_features(
    model: CLIPModel, processor: ProcessorMixin, images: Sequence[np.ndarray], precision: str
) -> Tensor:
    # The layout is said, because of an image three pixels high it would be guessed wrong.
    inputs = processor.image_processor(
        images=list(images), input_data_format="channels_last", return_tensors="pt"
    )
    with _computing(model, precision):
        features = model.get_image_features(
            pixel_values=inputs["pixel_values"].to(model.device, torch.float32)
        )
    return torch.nn.functional.normalize(features.pooler_output.float(), dim=-1)


def _text_features(
    model: CLIPModel, processor: ProcessorMixin, texts: Sequence[str], precision: str
) -> Tensor:
    length = model.text_model.config.max_position_embeddings
    inputs = processor.tokenizer(
        list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt"
    )
    inputs = inputs.to(model.device)
    with _computing(model, precision):
        features = model.get_text_features(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        )
    return torch.nn.functional.normalize(features.pooler_output.float(), dim=-1)
