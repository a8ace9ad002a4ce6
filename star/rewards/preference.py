"""Preference reward: PickScore's formula (Kirstain et al., arXiv 2305.01569) over any CLIP model.

    score(image, prompt) = exp(logit_scale) * cos(image features, text features)

Features are brought to unit length, and compared, in float32; `params.precision` says how the
networks compute them.

The reward is ``score / scale`` (26 for PickScore_v1, whose scores lie around 15 to 26). The same
code opens ``yuvalkirstain/PickScore_v1`` and the miniature's synthetic stand-in, which is a plain
`CLIPModel` directory."""

from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
import torch
from transformers import CLIPModel, ProcessorMixin

from star.config.params import PreferenceParams
from star.prompts.records import PromptRecord
from star.rewards.base import RewardError, RewardResult, check_batch, finished
from star.rewards.clip import image_features, open_clip, text_features
from star.system.memory import memory_for

KEY = "rewards.preference.path"


class PreferenceReward:
    """Scores in about [0, 1.2]: `clip_scores` divided by ``params.scale``; details hold the
    undivided ``score``."""

    name = "preference"

    @memory_for("opening")
    def __init__(self, params: PreferenceParams, device: str | torch.device | None = None) -> None:
        """Open the model of ``params.path`` on ``device`` (default: the GPU if there is one).

        Raises:
            StarError: the model or its processor cannot be opened.
        """
        self._scale, self._precision = params.scale, params.precision
        self._model, self._processor = open_clip(params.path, params.revision, KEY)
        torch.nn.Module.to(self._model, device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def submit(self, images: np.ndarray, records: Sequence[PromptRecord]) -> "Future[RewardResult]":
        """Score uint8 images (n, height, width, 3) in this process.

        Raises:
            RewardError: images of another type or shape, or a score that is not finite; names the
        record's id."""
        check_batch(self.name, images, records)
        prompts = [record.prompt for record in records]
        undivided = clip_scores(self._model, self._processor, images, prompts, self._precision)
        for score, record in zip(undivided, records, strict=True):
            if not np.isfinite(score):
                raise RewardError(
                    f"{record.id}: reward preference: the score is {score}; check the model's weights"
                )
        details = [{"score": float(score)} for score in undivided]
        return finished(RewardResult(scores=undivided / np.float32(self._scale), details=details))

    def image_features(self, images: np.ndarray) -> np.ndarray:
        """Features of uint8 images (n, height, width, 3), of length 1: float32 (n, d)."""
        return image_features(self._model, self._processor, images, self._precision).cpu().numpy()

    def close(self) -> None:
        """Nothing to give back: the model goes with the object."""


@torch.no_grad()
def clip_scores(
    model: CLIPModel,
    processor: ProcessorMixin,
    images: np.ndarray,
    prompts: Sequence[str],
    precision: str = "float32",
) -> np.ndarray:
    """``exp(logit_scale) * cos`` of image i and prompt i: float32 (n,).

    Each different prompt is encoded once; prompts longer than the text model's positions are cut.

    Args:
        model: in float32, in evaluation mode.
        processor: its CLIP processor.
        images: uint8 (n, height, width, 3).
        prompts: n texts.
        precision: float32, or bf16 for autocast.
    """
    distinct = list(dict.fromkeys(prompts))
    texts = text_features(model, processor, distinct, precision)  # (distinct, d)
    features = image_features(model, processor, images, precision)  # (n, d)
    row = {prompt: index for index, prompt in enumerate(distinct)}
    paired = texts[[row[prompt] for prompt in prompts]]  # (n, d)
    scores = model.logit_scale.float().exp() * (features * paired).sum(-1)  # (n,)
    return scores.cpu().numpy()
