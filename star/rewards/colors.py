"""Colour of a detected object as GenEval tells it: CLIP, zero-shot, on the object's crop.

Source: GenEval (Ghosh et al., arXiv 2310.11513), whose published classifier averages the unit text
features of three templates a colour, brings the mean to unit length, and takes the colour with the
largest cosine."""

from collections.abc import Sequence

import numpy as np
import torch

from star.prompts.geneval import COLORS
from star.rewards.clip import image_features, open_clip, text_features
from star.rewards.detection import Detection

KEY = "rewards.geneval.color_path"
BACKGROUND = 0x99  # grey level of what is not the object
TEMPLATES = (
    "a photo of a {color} {name}",
    "a photo of a {color}-colored {name}",
    "a photo of a {color} object",
)


class ColorClassifier:
    """Compares crops with the ten colours of their class; the texts of a class are encoded once."""

    def __init__(self, path: str, revision: str | None, device: str | torch.device) -> None:
        """Open the CLIP model.

        Raises:
            StarError: it cannot be opened.
        """
        self._model, self._processor = open_clip(path, revision, KEY)
        torch.nn.Module.to(self._model, device)
        self._texts: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def similarities(self, crops: Sequence[np.ndarray], names: Sequence[str]) -> np.ndarray:
        """Cosine of each crop with each of `star.prompts.geneval.COLORS`: float32 (n, 10), in [-1,
        1].

        Args:
            crops: n images uint8 (height, width, 3) of any size; CLIP's own processor shrinks the
                shorter side to its input and cuts the middle out, as in the published code.
            names: their n class names.
        """
        if not crops:
            return np.zeros((0, len(COLORS)), np.float32)
        images = image_features(self._model, self._processor, crops)  # (n, d)
        texts = torch.stack([self._class_texts(name) for name in names])  # (n, 10, d)
        return torch.einsum("nd,ncd->nc", images, texts).cpu().numpy()

    def _class_texts(self, name: str) -> torch.Tensor:
        """Unit features (10, d) of the colours of a class."""
        if name not in self._texts:
            texts = [
                template.format(color=color, name=name)
                for color in COLORS
                for template in TEMPLATES
            ]
            features = text_features(self._model, self._processor, texts)  # (10 * templates, d)
            mean = features.unflatten(0, (len(COLORS), len(TEMPLATES))).mean(1)
            self._texts[name] = torch.nn.functional.normalize(mean, dim=-1)
        return self._texts[name]


def object_crop(image: np.ndarray, detection: Detection) -> np.ndarray:
    """The object's box, uint8 (height, width, 3), in which pixels outside its mask have the grey
    `BACKGROUND`."""
    x0, y0, x1, y1 = (int(side) for side in detection.box)
    return np.where(detection.mask[y0:y1, x0:x1, None], image[y0:y1, x0:x1], np.uint8(BACKGROUND))
