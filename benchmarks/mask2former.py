"""Measure the speed of GenEval's neural detector with random weights; nothing is downloaded.

    python -m benchmarks.mask2former > benchmarks/figures/mask2former.json

Detector: transformers' Mask2Former on a Swin-S with COCO's 80 classes, on 512-pixel images scaled
to 800. Colours: CLIP ViT-L/14. Random weights are sure of nothing, so no object passes the
threshold, and what drawing masks would take is left out. CLIP is measured by itself, on crops at
its own size. Prints one JSON object, times of the device found.
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
)

from benchmarks.measure import machine
from star.plan.configs import known_models
from star.rewards.mask2former import find_objects, network_input

DETECTOR = "facebook/mask2former-swin-small-coco-instance"
COLORS = "openai/clip-vit-large-patch14"
SIDE = 512  # pixels of an image, as the presets draw it
THRESHOLD = 0.3


def random_detector() -> Mask2FormerForUniversalSegmentation:
    """Return a Mask2Former Swin-S for COCO instances."""
    config = Mask2FormerConfig.from_dict(known_models()[DETECTOR])
    return Mask2FormerForUniversalSegmentation(config).eval()


def random_clip() -> CLIPModel:
    """Return a CLIP ViT-L/14."""
    return CLIPModel(CLIPConfig.from_dict(known_models()[COLORS])).eval()


@torch.no_grad()
def detector_rate(device: torch.device, batch: int, repeats: int) -> float:
    """Return images/s, from uint8 to detections."""
    detector, rng = random_detector().to(device), np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, SIDE, SIDE, 3), dtype=np.uint8)

    def detect() -> None:
        pixels, sizes = network_input(torch.from_numpy(images).to(device))
        output = detector(pixel_values=pixels)
        for classes, masks in zip(
            output.class_queries_logits, output.masks_queries_logits, strict=True
        ):
            find_objects(classes.float(), masks.float(), sizes, THRESHOLD)

    return batch / _best(detect, repeats, device)


@torch.no_grad()
def clip_rate(device: torch.device, batch: int, repeats: int) -> float:
    """Return crops/s of CLIP's image half, which each object goes through whose colour is asked."""
    clip, side = random_clip().to(device), known_models()[COLORS]["vision_config"]["image_size"]
    crops = torch.randn(batch, 3, side, side, device=device)
    return batch / _best(lambda: clip.get_image_features(crops), repeats, device)


def _best(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Return the seconds of the fastest of ``repeats`` calls, after one that is thrown away."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--batch", type=int, help="images at a time; default: 8 on a GPU, 1 on a CPU"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--busy", help="what else the machine was doing, for the record")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = options.batch or (8 if device.type == "cuda" else 1)
    torch.manual_seed(0)
    found = {
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "busy": options.busy,
        "batch": batch,
    }
    rates = {
        "detector_images_per_s": round(detector_rate(device, batch, options.repeats), 4),
        "clip_crops_per_s": round(clip_rate(device, batch, options.repeats), 4),
    }
    print(json.dumps({**found, "repeats": options.repeats, **rates}, indent=1))


if __name__ == "__main__":
    main()
