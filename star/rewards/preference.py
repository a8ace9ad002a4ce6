"""Preference reward: PickScore's formula (Kirstain et al., arXiv 2305.01569) over any CLIP model.

    score(image, prompt) = exp(logit_scale) * cos(image features, text features)

The reward is ``score / scale``; 26 suits ``yuvalkirstain/PickScore_v1``, whose scores lie around 15
to 26. The miniature's synthetic stand-in, a plain `CLIPModel` directory, opens in the same way."""

from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
import torch

from star.config.params import PreferenceParams
from star.prompts.records import PromptRecord
from star.rewards.base import Reward, RewardError, RewardResult, check_batch, finished
from star.rewards.clip import Clip
from star.system.memory import memory_for

KEY = "rewards.preference.path"


class PreferenceReward(Reward):
    """`clip_scores` divided by ``params.scale``, in about [0, 1.2]; details hold the ``score``."""

    name = "preference"

    @memory_for("opening")
    def __init__(self, params: PreferenceParams, device: str | torch.device | None = None) -> None:
        """Open the model on ``device`` (default: the GPU if there is one); raises as `Clip`."""
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.clip = Clip(params.path, params.revision, KEY, device, params.precision)
        self._scale = np.float32(params.scale)

    def submit(self, images: np.ndarray, records: Sequence[PromptRecord]) -> "Future[RewardResult]":
        """Score images in this process.

        Raises:
            RewardError: images of another type or shape, or a score that is not finite."""
        check_batch(self.name, images, records)
        scores = clip_scores(self.clip, images, [record.prompt for record in records])
        for score, record in zip(scores, records, strict=True):
            if not np.isfinite(score):
                raise RewardError(
                    f"{record.id}: reward preference: the score is {score}; "
                    "check the model's weights"
                )
        details = [{"score": float(score)} for score in scores]
        return finished(RewardResult(scores / self._scale, details))

    def image_features(self, images: np.ndarray) -> np.ndarray:
        """Return features of uint8 images (n, height, width, 3), of length 1: float32 (n, d)."""
        return self.clip.image_features(images).cpu().numpy()


def clip_scores(clip: Clip, images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """Return ``exp(logit_scale) * cos`` of image i and prompt i: float32 (n,).

    Images are uint8 (n, height, width, 3). Each different prompt is encoded once; one that is
    longer than the text model's positions is cut."""
    row = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
    texts = clip.text_features(list(row))[[row[prompt] for prompt in prompts]]  # (n, d)
    cosines = (clip.image_features(images) * texts).sum(-1)  # (n,)
    return (clip.model.logit_scale.float().exp() * cosines).cpu().numpy()
