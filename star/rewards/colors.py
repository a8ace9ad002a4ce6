"""Colour of a detected object as GenEval tells it: CLIP, zero-shot, on the object's crop.

Source: GenEval (Ghosh et al., arXiv 2310.11513). Its published classifier takes the mean of the
text features of three templates a colour, and the colour with the largest cosine."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import normalize

from star.prompts.geneval import COLORS
from star.rewards.clip import Clip
from star.rewards.detection import Detection

BACKGROUND = 0x99  # grey level of what is not the object
TEMPLATES = (
    "a photo of a {color} {name}",
    "a photo of a {color}-colored {name}",
    "a photo of a {color} object",
)


class ColorClassifier:
    """Compares crops with the ten colours of their class; the texts of a class are encoded once."""

    def __init__(self, clip: Clip) -> None:
        self.clip = clip
        self._texts: dict[str, torch.Tensor] = {}

    def similarities(self, crops: Sequence[np.ndarray], names: Sequence[str]) -> np.ndarray:
        """Return the cosine of each crop with each of `COLORS`: float32 (n, 10), in [-1, 1].

        Crops are uint8 (height, width, 3) of any size, with their class names. As published, CLIP's
        processor scales the shorter side to its input and cuts the middle out."""
        if not crops:
            return np.zeros((0, len(COLORS)), np.float32)
        images = self.clip.image_features(crops)  # (n, d)
        texts = torch.stack([self._class_texts(name) for name in names])  # (n, 10, d)
        return torch.einsum("nd,ncd->nc", images, texts).cpu().numpy()

    def _class_texts(self, name: str) -> torch.Tensor:
        """Return the unit features (10, d) of the colours of a class."""
        if name not in self._texts:
            texts = [t.format(color=color, name=name) for color in COLORS for t in TEMPLATES]
            features = self.clip.text_features(texts)  # (10 * templates, d)
            mean = features.unflatten(0, (len(COLORS), len(TEMPLATES))).mean(1)
            self._texts[name] = normalize(mean, dim=-1)
        return self._texts[name]


def object_crop(image: np.ndarray, detection: Detection) -> np.ndarray:
    """Cut out the object's box: uint8 (height, width, 3), `BACKGROUND` outside its mask."""
    x0, y0, x1, y1 = (int(side) for side in detection.box)
    return np.where(detection.mask[y0:y1, x0:x1, None], image[y0:y1, x0:x1], np.uint8(BACKGROUND))
