"""GenEval's neural detector: Mask2Former through `transformers`, fed and read as mmdet 2.x does.

GenEval's own detector is mmdet's Mask2Former Swin-S for COCO instances. The architecture is the
same here, the weights are those of the original authors, and transformers' own pre- and
post-processing, which differ, are not used. Sizes are (height, width) in pixels.

Sources: mmdet 2.x, configs/mask2former (test pipeline), MaskFormerHead and MaskFormerFusionHead
(post-processing); Mask2Former (Cheng et al., arXiv 2112.01527); GenEval (Ghosh et al., arXiv
2310.11513)."""

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import Mask2FormerForUniversalSegmentation

from star.config.params import GenevalParams
from star.prompts.geneval import COCO_CLASSES, COLORS
from star.rewards.clip import find_clip
from star.rewards.colors import KEY as COLOR_KEY
from star.rewards.colors import ColorClassifier, object_crop
from star.rewards.detection import Detection, DetectionError
from star.rewards.geneval import keep_detections
from star.system.errors import StarError
from star.system.memory import memory_for
from star.system.pretrained import find_model, open_model

Size = tuple[int, int]

KEY = "rewards.geneval.path"
LONG_SIDE, SHORT_SIDE = 1333, 800  # an image is scaled to the largest size within
STRIDE = 32  # the network's input is a multiple of it
MEAN, STD = (
    (123.675, 116.28, 103.53),
    (58.395, 57.12, 57.375),
)  # ImageNet's, of 8-bit red, green, blue
PADDING = 128  # grey level below and to the right of an image
CANDIDATES = 100  # pairs of query and class that are looked at


@dataclass(frozen=True)
class Sizes:
    """An image's size on its way: as given, scaled for the network, and padded."""

    original: Size
    scaled: Size
    padded: Size


class Mask2FormerDetector:
    """Detector of COCO's 80 classes; implements `star.rewards.detection.Detector`.

    It reports what may count under either threshold, with a colour where one is asked for: a score
    above the lower one, at most ``max_per_class`` of a class. Everything else is left out: a mask
    is as large as its image."""

    classes: tuple[str, ...] = COCO_CLASSES

    @memory_for("opening")
    def __init__(self, params: GenevalParams, device: str | torch.device | None = None) -> None:
        """Open both models on ``device`` (default: the GPU if there is one).

        Raises:
            StarError: a model is not named, cannot be opened, or has not COCO's 80 classes.
        """
        path, color_path = find_models(params)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._params = params
        self._threshold = min(params.score_threshold, params.counting_threshold)
        self._model = open_model(
            Mask2FormerForUniversalSegmentation, path, params.revision, KEY
        ).to(device)
        self._colors = ColorClassifier(color_path, params.color_revision, device)

    def detect(
        self, images: np.ndarray, colored: Sequence[Collection[str]] | None = None
    ) -> list[list[Detection]]:
        """Detections of images, best first.

        Args:
            images: uint8 (n, height, width, 3).
            colored: of each image the classes whose objects get a colour; None: all.

        Raises:
            DetectionError: a model's output is not finite.
        """
        found = []
        for objects in self._objects(images):
            groups = keep_detections(objects, self._threshold, self._params.max_per_class).values()
            found.append(sorted(itertools.chain(*groups), key=lambda detection: -detection.score))
        return self._colored(images, found, colored)

    @torch.no_grad()
    def _objects(self, images: np.ndarray) -> Iterator[list[Detection]]:
        """Each image's objects, without colours."""
        for first in range(0, len(images), self._params.batch):
            part = images[first : first + self._params.batch]
            pixels, sizes = network_input(torch.from_numpy(part).to(self._model.device))
            output = self._model(pixel_values=pixels)
            classes, masks = (
                output.class_queries_logits.float(),
                output.masks_queries_logits.float(),
            )
            for index in range(len(part)):
                if not (classes[index].isfinite().all() and masks[index].isfinite().all()):
                    raise DetectionError(
                        first + index, "the detector's output is not finite; check its weights"
                    )
                yield find_objects(classes[index], masks[index], sizes, self._threshold)

    def _colored(
        self,
        images: np.ndarray,
        found: list[list[Detection]],
        wanted: Sequence[Collection[str]] | None,
    ) -> list[list[Detection]]:
        """The same detections, those of ``wanted`` classes with their colours; the crops of all
        images share their forward passes."""
        numbered = [
            (image, place)
            for image, objects in enumerate(found)
            for place, detection in enumerate(objects)
            if wanted is None or detection.name in wanted[image]
        ]
        similarities = self._colors.similarities(
            [object_crop(images[image], found[image][place]) for image, place in numbered],
            [found[image][place].name for image, place in numbered],
        )
        colored = [list(objects) for objects in found]
        for (image, place), row in zip(numbered, similarities, strict=True):
            if not np.isfinite(row).all():
                raise DetectionError(
                    image, "the colour model's output is not finite; check its weights"
                )
            colored[image][place] = replace(found[image][place], color=COLORS[int(row.argmax())])
        return colored


def find_models(params: GenevalParams) -> tuple[str, str]:
    """Have both models on this machine, without reading their weights; returns what names them.

    Raises:
        StarError: a model is not named, is not to be had, or has not COCO's 80 classes.
    """
    if params.path is None or params.color_path is None:
        raise StarError("rewards.geneval: the detector mask2former wants a path and a color_path")
    _, config = find_model(Mask2FormerForUniversalSegmentation, params.path, params.revision, KEY)
    if config.num_labels != len(COCO_CLASSES):
        raise StarError(
            f"{KEY} {params.path!r}: the model has {config.num_labels} classes; give one for COCO instances, which has "
            f"{len(COCO_CLASSES)}"
        )
    find_clip(params.color_path, params.color_revision, COLOR_KEY)
    return params.path, params.color_path


def network_input(images: Tensor) -> tuple[Tensor, Sizes]:
    """mmdet's test pipeline: scale with the ratio kept, pad with grey, normalise.

    Args:
        images: uint8 (n, height, width, 3), red first.

    Returns:
        float32 (n, 3, padded height, padded width), and the sizes on the way.
    """
    height, width = images.shape[1:3]
    scale = min(LONG_SIDE / max(height, width), SHORT_SIDE / min(height, width))
    scaled = (int(height * scale + 0.5), int(width * scale + 0.5))
    pixels = _resize(
        images.permute(0, 3, 1, 2).float(), scaled
    ).round()  # mmdet scales 8-bit images
    below, right = (-side % STRIDE for side in scaled)
    pixels = functional.pad(
        pixels, (0, right, 0, below), value=PADDING
    )  # (n, 3, padded height, padded width)
    mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std, Sizes(
        (height, width), scaled, (scaled[0] + below, scaled[1] + right)
    )


def find_objects(
    class_logits: Tensor, mask_logits: Tensor, sizes: Sizes, threshold: float
) -> list[Detection]:
    """mmdet's post-processing of one image: its `CANDIDATES` likeliest pairs of query and class
    that can pass.

    The score is the class probability times the mean sigmoid inside the mask, where the mask logit
    is above 0. It is no larger than the probability, so a pair whose probability does not pass is
    not drawn. Nor is an empty mask reported, which mmdet keeps with a zero box and a score of 0.
    Colours are left open.

    Args:
        class_logits: (queries, classes + 1): COCO's classes in GenEval's order, then "no object".
        mask_logits: (queries, rows, columns) over the padded image.
        sizes: of the image.
        threshold: what a score must exceed, at least 0.
    """
    probabilities = class_logits.softmax(-1)[:, :-1]  # (queries, classes)
    best = probabilities.flatten().topk(min(CANDIDATES, probabilities.numel()))
    passing = best.values > threshold
    likely, index = best.values[passing], best.indices[passing]  # (n,)
    queries = index.div(probabilities.shape[1], rounding_mode="floor")
    logits = _resize(mask_logits[queries][:, None], sizes.padded)[
        ..., : sizes.scaled[0], : sizes.scaled[1]
    ]
    logits = _resize(logits, sizes.original)[:, 0]  # (n, height, width)
    masks = logits > 0
    inside = (logits.sigmoid() * masks).sum((1, 2)) / masks.sum((1, 2)).clamp(min=1)  # (n,)
    scores = likely * inside
    seen = scores > threshold
    labels = (index % probabilities.shape[1])[seen]
    rows = zip(labels.tolist(), scores[seen].tolist(), masks[seen].cpu().numpy(), strict=True)
    return [
        Detection(COCO_CLASSES[label], score, _box(mask), mask, None) for label, score, mask in rows
    ]


def _box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1) around a mask that is not empty, the far edges exclusive."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _resize(images: Tensor, size: Size) -> Tensor:
    """Bilinear, pixel centres at halves, without smoothing before shrinking: what OpenCV and mmdet
    do."""
    return functional.interpolate(images, size, mode="bilinear", align_corners=False)
