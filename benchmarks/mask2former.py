"""Measure the speed of GenEval's neural detector with random weights; nothing is downloaded.

    python -m benchmarks.mask2former > benchmarks/figures/mask2former.json

Detector: transformers' Mask2Former on a Swin-S with COCO's 80 classes, on 512-pixel images scaled
to 800. Colours: CLIP ViT-L/14. Random weights are sure of nothing, so no object passes the
threshold, and what drawing masks would take is left out. CLIP is measured by itself, on crops at
its own size. Prints one JSON object, times of the device found.
"""

import argparse
import json

import numpy as np
import torch

from star.doctor.measure import machine
from star.doctor.reward_models import clip_rate, detector_rate

SIDE = 512  # pixels of an image, as the presets draw it


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
    shape, rng = (batch, SIDE, SIDE, 3), np.random.default_rng(0)
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    found = {
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "busy": options.busy,
        "batch": batch,
    }
    rates = {
        "detector_images_per_s": round(detector_rate(device, images, options.repeats), 4),
        "clip_crops_per_s": round(clip_rate(device, batch, options.repeats), 4),
    }
    print(json.dumps({**found, "repeats": options.repeats, **rates}, indent=1))


if __name__ == "__main__":
    main()
