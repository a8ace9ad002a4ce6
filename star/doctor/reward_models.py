"""Images that readers, detectors and judges take a second. Networks have random weights.

Random weights are sure of nothing: no object passes the detector's threshold, so what drawing masks
would take is left out.
"""

from collections.abc import Callable

import numpy as np
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
)

from star.config.params import Params
from star.doctor.findings import Finding, Result
from star.doctor.measure import seconds
from star.doctor.subject import Subject
from star.miniature.world import Scene, render
from star.plan.configs import Config, known_models, reward_configs
from star.rewards.exact_detector import ExactDetector
from star.rewards.mask2former import find_objects, network_input
from star.rewards.ocr import ppocrv4
from star.rewards.reading import ReadingPool

DETECTOR = "facebook/mask2former-swin-small-coco-instance"
COLORS = "openai/clip-vit-large-patch14"
THRESHOLD = 0.3


def random_detector(config: Config | None = None) -> Mask2FormerForUniversalSegmentation:
    """Return a detector; by default a Mask2Former Swin-S for COCO instances."""
    made = Mask2FormerConfig.from_dict(config or known_models()[DETECTOR])
    return Mask2FormerForUniversalSegmentation(made).eval()


def random_clip(config: Config | None = None) -> CLIPModel:
    """Return a CLIP model; by default a ViT-L/14."""
    return CLIPModel(CLIPConfig.from_dict(config or known_models()[COLORS])).eval()


@torch.no_grad()
def detector_rate(
    device: torch.device, images: np.ndarray, repeats: int, config: Config | None = None
) -> float:
    """Return images/s of a batch, from uint8 (n, height, width, 3) to detections."""
    detector = random_detector(config).to(device)

    def detect() -> None:
        pixels, sizes = network_input(torch.from_numpy(images).to(device))
        output = detector(pixel_values=pixels)
        for classes, masks in zip(
            output.class_queries_logits, output.masks_queries_logits, strict=True
        ):
            find_objects(classes.float(), masks.float(), sizes, THRESHOLD)

    return len(images) / _best(detect, repeats, device)


@torch.no_grad()
def clip_rate(
    device: torch.device, batch: int, repeats: int, config: Config | None = None
) -> float:
    """Return images/s of a CLIP model's image half."""
    clip = random_clip(config).to(device)
    side = clip.config.vision_config.image_size
    pixels = torch.randn(batch, 3, side, side, device=device)
    return batch / _best(lambda: clip.get_image_features(pixels), repeats, device)


def _best(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Return the seconds of the fastest of ``repeats`` calls, after one that is thrown away."""

    def waited() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return min([seconds(waited) for _ in range(repeats + 1)][1:])


def signs(count: int, side: int) -> np.ndarray:
    """Return images of a sign with a word, uint8 (count, side, side, 3)."""
    image = render(Scene(text="STAR"))
    scale = -(-side // len(image))
    image = image.repeat(scale, 0).repeat(scale, 1)[:side, :side]
    return np.repeat(image[None], count, 0)


def reader_rate(params: Params, images: np.ndarray, repeats: int) -> float:
    """Return images/s of the OCR reward's reader, by its `rewards.ocr.workers` processes."""
    ocr, ids = params.rewards.ocr, [str(number) for number in range(len(images))]
    pool = ReadingPool(ppocrv4(ocr.read_side), ocr.workers, params.rewards.timeout)
    try:
        return len(images) / _best(lambda: pool.read(images, ids), repeats, torch.device("cpu"))
    finally:
        pool.close()


def check_rewards(subject: Subject, found: dict) -> Result:
    """Measure what scores images, by the parameters' rewards."""
    params, sizes, device = subject.params, subject.sizes, subject.device
    side, repeats = params.model.resolution, sizes.rounds
    read = signs(sizes.read, side)
    rates = {"reader": reader_rate(params, read, repeats)}
    geneval = params.rewards.geneval
    if geneval.detector == "exact":
        exact, batch = ExactDetector(), read[: sizes.images]
        taken = _best(lambda: exact.detect(batch), repeats, torch.device("cpu"))
        rates["detector"] = len(batch) / taken
    else:
        detector, colors = reward_configs(params.rewards, "geneval").values()
        batch = signs(geneval.batch, side)
        rates["detector"] = detector_rate(device, batch, repeats, detector)
        rates["colours"] = clip_rate(device, sizes.images, repeats, colors)
    (judge,) = reward_configs(params.rewards, "preference").values()
    if judge is not None:
        rates["judge"] = clip_rate(device, sizes.images, repeats, judge)
    shown = ", ".join(f"{name} {rate:.3g}" for name, rate in rates.items())
    workers = params.rewards.ocr.workers
    value = f"images/s: {shown} (reader: {workers} processes; {geneval.detector} detector)"
    return [Finding("rewards", value)], rates
