"""Preference reward: PickScore's formula (Kirstain et al., arXiv 2305.01569) over any CLIP model.

    score(picture, prompt) = exp(logit_scale) * cos(image features, text features)          features in float32

The reward is ``score / scale`` (26 for PickScore_v1, whose scores lie around 15 to 26). The same code opens
``yuvalkirstain/PickScore_v1`` and the miniature's synthetic stand-in, which is a plain `CLIPModel` directory.
"""

from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
import torch
from transformers import AutoProcessor, CLIPModel, ProcessorMixin

from star.errors import StarError
from star.params import PreferenceParams
from star.records import PromptRecord
from star.rewards.base import RewardError, RewardResult, check_batch, finished

# Models published without a processor of their own -> where the processor lies.
PROCESSORS = {"yuvalkirstain/PickScore_v1": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"}
BATCH = 64  # pictures a forward pass


class PreferenceReward:
    """Scores in about [0, 1.2]: `clip_scores` divided by ``params.scale``; details hold the undivided ``score``."""

    name = "preference"

    def __init__(self, params: PreferenceParams, device: str | torch.device | None = None) -> None:
        """Open the model of ``params.path`` on ``device`` (default: the GPU if there is one).

        Raises:
            StarError: the model or its processor cannot be opened.
        """
        self._scale = params.scale
        self._model, self._processor = open_clip(params.path, params.revision)
        torch.nn.Module.to(self._model, device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def submit(self, images: np.ndarray, records: Sequence[PromptRecord]) -> "Future[RewardResult]":
        """Score uint8 pictures (n, height, width, 3) in this process.

        Raises:
            RewardError: pictures of another type or shape, or a score that is not finite; names the record's id.
        """
        check_batch(self.name, images, records)
        undivided = clip_scores(self._model, self._processor, images, [record.prompt for record in records])
        for score, record in zip(undivided, records, strict=True):
            if not np.isfinite(score):
                raise RewardError(f"{record.id}: reward preference: the score is {score}; check the model's weights")
        details = [{"score": float(score)} for score in undivided]
        return finished(RewardResult(scores=undivided / np.float32(self._scale), details=details))

    def image_features(self, images: np.ndarray) -> np.ndarray:
        """Features of uint8 pictures (n, height, width, 3), of length 1: float32 (n, d)."""
        return _all_image_features(self._model, self._processor, images).cpu().numpy()

    def close(self) -> None:
        """Nothing to give back: the model goes with the object."""


def open_clip(path: str, revision: str | None = None) -> tuple[CLIPModel, ProcessorMixin]:
    """A CLIP model in float32, for inference, and its processor, from a directory or hub id (safetensors only).

    Raises:
        StarError: either cannot be opened.
    """
    processor_path = PROCESSORS.get(path, path)
    try:
        model = CLIPModel.from_pretrained(path, revision=revision or "main", dtype=torch.float32, use_safetensors=True)
        processor = AutoProcessor.from_pretrained(
            processor_path, revision=revision if processor_path == path else None, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise StarError(
            f"rewards.preference.path {path!r}: not a CLIP model with processor ({reason}); "
            f"give a directory or hub id that CLIPModel.from_pretrained opens"
        ) from error
    return model.eval().requires_grad_(False), processor


@torch.no_grad()
def clip_scores(model: CLIPModel, processor: ProcessorMixin, images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """``exp(logit_scale) * cos`` of picture i and prompt i: float32 (n,).

    Each different prompt is encoded once; prompts longer than the text model's positions are cut.

    Args:
        model: in float32, in evaluation mode.
        processor: its CLIP processor.
        images: uint8 (n, height, width, 3).
        prompts: n texts.
    """
    distinct = list(dict.fromkeys(prompts))
    texts = torch.cat([_text_features(model, processor, part) for part in _parts(distinct)])  # (distinct, d)
    pictures = _all_image_features(model, processor, images)  # (n, d)
    row = {prompt: index for index, prompt in enumerate(distinct)}
    paired = texts[[row[prompt] for prompt in prompts]]  # (n, d)
    scores = model.logit_scale.float().exp() * (pictures * paired).sum(-1)  # (n,)
    return scores.cpu().numpy()


def _parts(items: Sequence | np.ndarray) -> list:
    return [items[start : start + BATCH] for start in range(0, len(items), BATCH)]


@torch.no_grad()
def _all_image_features(model: CLIPModel, processor: ProcessorMixin, images: np.ndarray) -> torch.Tensor:
    return torch.cat([_image_features(model, processor, part) for part in _parts(images)])


def _image_features(model: CLIPModel, processor: ProcessorMixin, images: np.ndarray) -> torch.Tensor:
    inputs = processor.image_processor(images=list(images), return_tensors="pt")
    features = model.get_image_features(pixel_values=inputs["pixel_values"].to(model.device, torch.float32))
    return torch.nn.functional.normalize(features.pooler_output.float(), dim=-1)


def _text_features(model: CLIPModel, processor: ProcessorMixin, prompts: Sequence[str]) -> torch.Tensor:
    length = model.text_model.config.max_position_embeddings
    inputs = processor.tokenizer(
        list(prompts), padding=True, truncation=True, max_length=length, return_tensors="pt"
    ).to(model.device)
    features = model.get_text_features(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    return torch.nn.functional.normalize(features.pooler_output.float(), dim=-1)
