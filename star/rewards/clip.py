"""CLIP models for the rewards: opened with their processor, features in float32 of unit length.

Weights are float32. The precision ``bf16`` is autocast: products of matrices in bfloat16, norms and
the sum that runs through the blocks in float32, where bfloat16 weights would round it."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoProcessor, CLIPModel, ProcessorMixin

from star.system.hub import DESCRIPTIONS, model_folder
from star.system.pretrained import OPENING_ERRORS, cannot_open, find_model, open_model

# Models published without a processor -> where theirs lies, at its newest commit: a tokenizer and
# the images' size, mean and std.
PROCESSORS = {"yuvalkirstain/PickScore_v1": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"}
BATCH = 64  # images or texts a forward pass


class Clip:
    """A CLIP model for inference and its processor, which prepares images with PIL."""

    def __init__(
        self,
        path: str,
        revision: str | None = None,
        key: str = "rewards.preference.path",
        device: str | torch.device = "cpu",
        precision: str = "float32",
    ) -> None:
        """Open both from a directory or hub id; ``revision`` is a commit of a hub id.

        Args:
            key: the parameter that holds ``path``, for messages.
            precision: float32, or bf16 for autocast.

        Raises:
            StarError: the model or its processor cannot be opened; begins with ``key``."""
        self.model: CLIPModel = open_model(CLIPModel, path, revision, key).to(device)
        self.processor = _open_processor(path, revision, key)
        self._bf16 = precision == "bf16"

    @torch.no_grad()
    def image_features(self, images: Sequence[np.ndarray] | np.ndarray) -> Tensor:
        """Return float32 (n, d) of uint8 images (height, width, 3), which may differ in size."""
        features = []
        for start in range(0, len(images), BATCH):
            inputs = self.processor.image_processor(
                images=list(images[start : start + BATCH]),
                input_data_format="channels_last",  # guessed wrong of an image three pixels high
                return_tensors="pt",
            )
            pixels = inputs["pixel_values"].to(self.model.device, torch.float32)
            with self._autocast():
                features.append(self.model.get_image_features(pixels).pooler_output)
        return normalize(torch.cat(features).float(), dim=-1)

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Return float32 (n, d); texts longer than the text model's positions are cut."""
        length = self.model.text_model.config.max_position_embeddings
        features = []
        for start in range(0, len(texts), BATCH):
            inputs = self.processor.tokenizer(
                list(texts[start : start + BATCH]),
                padding=True,
                truncation=True,
                max_length=length,
                return_tensors="pt",
            ).to(self.model.device)
            with self._autocast():
                output = self.model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
            features.append(output.pooler_output)
        return normalize(torch.cat(features).float(), dim=-1)

    def _autocast(self) -> torch.autocast:
        """Return autocast to bfloat16, or one that switches the caller's off."""
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self._bf16)


def find_clip(path: str, revision: str | None, key: str) -> None:
    """Fetch and check all of a CLIP model without reading its weights; raises as `Clip`."""
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
