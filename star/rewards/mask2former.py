"""GenEval's neural detector: Mask2Former through `transformers`, fed and read as mmdet 2.x does.

GenEval's own detector is mmdet's Mask2Former Swin-S for COCO instances. The architecture is the
same here, the weights are the original authors'. transformers' own pre- and post-processing differ
and are not used. Sizes are (height, width) in pixels.

Sources: mmdet 2.x, configs/mask2former (test pipeline), MaskFormerHead and MaskFormerFusionHead
(post-processing); Mask2Former (Cheng et al., arXiv 2112.01527); GenEval (arXiv 2310.11513)."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import Mask2FormerForUniversalSegmentation

from star.config.params import GenevalParams
from star.method.precision import without_tf32
from star.prompts.geneval import COCO_CLASSES, COLORS
from star.rewards.clip import Clip, find_clip
from star.rewards.colors import ColorClassifier, object_crop
from star.rewards.detection import Colored, Detection, DetectionError, mask_box
from star.rewards.geneval import keep_detections
from star.system.errors import StarError
from star.system.memory import memory_for
from star.system.pretrained import find_model, open_model

Size = tuple[int, int]

KEY, COLOR_KEY = "rewards.geneval.path", "rewards.geneval.color_path"
LONG_SIDE, SHORT_SIDE = 1333, 800  # an image is scaled to the largest size within
STRIDE = 32  # the network's input is a multiple of it
MEAN = (123.675, 116.28, 103.53)  # ImageNet's, of 8-bit red, green, blue
STD = (58.395, 57.12, 57.375)
PADDING = 128  # grey level below and to the right of an image
CANDIDATES = 100  # pairs of query and class that are looked at
NOT_FINITE = "output is not finite; check its weights"


@dataclass(frozen=True)
class Sizes:
    """An image's size on its way: as given, scaled for the network, and padded."""

    original: Size
    scaled: Size
    padded: Size


class Mask2FormerDetector:
    """Detector of COCO's 80 classes; implements `star.rewards.detection.Detector`.

    It reports what may count under either threshold: a score above the lower one, at most
    ``max_per_class`` of a class. The rest is left out, because a mask is as large as its image."""

    classes: tuple[str, ...] = COCO_CLASSES

    @memory_for("opening")
    def __init__(self, params: GenevalParams, device: str | torch.device | None = None) -> None:
        """Open both models on ``device`` (default: the GPU if there is one); see `find_models`."""
        path, color_path = find_models(params)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        kind = Mask2FormerForUniversalSegmentation
        self._model = open_model(kind, path, params.revision, KEY).to(device)
        self._colors = ColorClassifier(Clip(color_path, params.color_revision, COLOR_KEY, device))
        self._threshold = min(params.score_threshold, params.counting_threshold)
        self._max_per_class, self._batch = params.max_per_class, params.batch

    @without_tf32()  # in which detections are lost on some GPUs, by reports; we have not measured
    def detect(self, images: np.ndarray, colored: Colored = None) -> list[list[Detection]]:
        """Return the detections of images; raises `DetectionError` for output not finite."""
        found = []
        for objects in self._objects(images):
            groups = keep_detections(objects, self._threshold, self._max_per_class).values()
            found.append(sorted(itertools.chain(*groups), key=lambda detection: -detection.score))
        return self._with_colors(images, found, colored)

    @torch.no_grad()
    def _objects(self, images: np.ndarray) -> Iterator[list[Detection]]:
        """Yield each image's objects, without colours."""
        for first in range(0, len(images), self._batch):
            part = torch.from_numpy(images[first : first + self._batch])
            pixels, sizes = network_input(part.to(self._model.device))
            output = self._model(pixel_values=pixels)
            logits = output.class_queries_logits, output.masks_queries_logits
            bad = torch.stack([~each.isfinite().flatten(1).all(1) for each in logits]).any(0)
            outputs = zip(*logits, bad.cpu().tolist(), strict=True)
            for index, (classes, masks, broken) in enumerate(outputs, first):
                if broken:
                    raise DetectionError(index, f"the detector's {NOT_FINITE}")
                yield find_objects(classes.float(), masks.float(), sizes, self._threshold)

    def _with_colors(
        self, images: np.ndarray, found: list[list[Detection]], wanted: Colored
    ) -> list[list[Detection]]:
        """Add the colours of the ``wanted`` classes; all images share the forward passes."""
        places = [
            (image, place)
            for image, objects in enumerate(found)
            for place, detection in enumerate(objects)
            if wanted is None or detection.name in wanted[image]
        ]
        crops = [object_crop(images[image], found[image][place]) for image, place in places]
        names = [found[image][place].name for image, place in places]
        similarities = self._colors.similarities(crops, names)
        for (image, place), row in zip(places, similarities, strict=True):
            if not np.isfinite(row).all():
                raise DetectionError(image, f"the colour model's {NOT_FINITE}")
            found[image][place] = replace(found[image][place], color=COLORS[int(row.argmax())])
        return found


def find_models(params: GenevalParams) -> tuple[str, str]:
    """Fetch and check both models without reading their weights; return ``path, color_path``.

    Raises:
        StarError: a model is not to be had, or has not COCO's 80 classes."""
    assert params.path is not None and params.color_path is not None  # star.config.consistency
    _, config = find_model(Mask2FormerForUniversalSegmentation, params.path, params.revision, KEY)
    if config.num_labels != len(COCO_CLASSES):
        raise StarError(
            f"{KEY} {params.path!r}: the model has {config.num_labels} classes; "
            f"give one for COCO instances, which has {len(COCO_CLASSES)}"
        )
    find_clip(params.color_path, params.color_revision, COLOR_KEY)
    return params.path, params.color_path


def network_input(images: Tensor) -> tuple[Tensor, Sizes]:
    """Apply mmdet's test pipeline: scale with the ratio kept, pad with grey, normalise.

    From uint8 (n, height, width, 3), RGB, to float32 (n, 3, padded height, padded width)."""
    height, width = images.shape[1:3]
    scale = min(LONG_SIDE / max(height, width), SHORT_SIDE / min(height, width))
    scaled = (int(height * scale + 0.5), int(width * scale + 0.5))
    below, right = (-side % STRIDE for side in scaled)
    sizes = Sizes((height, width), scaled, (scaled[0] + below, scaled[1] + right))
    pixels = _resize(images.permute(0, 3, 1, 2).float(), scaled)
    pixels = functional.pad(pixels.round(), (0, right, 0, below), value=PADDING)  # 8-bit, as mmdet
    mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std, sizes


def find_objects(
    class_logits: Tensor, mask_logits: Tensor, sizes: Sizes, threshold: float
) -> list[Detection]:
    """Apply mmdet's post-processing to one image's `CANDIDATES` likeliest query-class pairs.

    The score is the class probability times the mean sigmoid inside the mask, where the mask logit
    is above 0. It is no larger than the probability, so only pairs whose probability passes are
    looked at. An empty mask is left out; mmdet keeps it with a zero box and a score of 0.

    ``class_logits`` are (queries, classes + 1), the last one "no object"; ``mask_logits`` (queries,
    rows, columns) over the padded image. Scores exceed ``threshold``; colours are left open."""
    probabilities = class_logits.softmax(-1)[:, :-1]  # (queries, classes)
    best = probabilities.flatten().topk(min(CANDIDATES, probabilities.numel()))
    passing = int((best.values > threshold).sum())  # the first: the best come first
    likely, index = best.values[:passing], best.indices[:passing]  # (n,)
    queries = index.div(probabilities.shape[1], rounding_mode="floor")
    logits = _resize(mask_logits[queries][:, None], sizes.padded)
    logits = logits[..., : sizes.scaled[0], : sizes.scaled[1]]
    logits = _resize(logits, sizes.original)[:, 0]  # (n, height, width)
    masks = logits > 0
    inside = (logits.sigmoid() * masks).sum((1, 2)) / masks.sum((1, 2)).clamp(min=1)  # (n,)
    labels, scores = (index % probabilities.shape[1]).cpu().tolist(), (likely * inside).cpu()
    rows = zip(labels, scores.tolist(), masks.cpu().numpy(), scores > threshold, strict=True)
    return [
        Detection(COCO_CLASSES[label], score, mask_box(mask), mask, None)
        for label, score, mask, seen in rows
        if seen
    ]


def _resize(images: Tensor, size: Size) -> Tensor:
    """Scale as OpenCV and mmdet do: bilinear, pixel centres at halves, no smoothing."""
    return functional.interpolate(images, size, mode="bilinear", align_corners=False)
