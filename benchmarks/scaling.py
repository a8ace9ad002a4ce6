"""Estimate what an epoch costs on 1, 8, 32 and 256 GPUs.

    python -m benchmarks.scaling > benchmarks/figures/scaling.json

It is a calculation for the preset for 32 GPUs: no GPU has run it. Measured here is the processor
time in which one core reads a 512-pixel image (PP-OCR). Counted are operations of the transformer
and the VAE (`star plan`), and numbers that the gradients' mean sends. Assumed, and to be replaced
by your own, are operations/s of a GPU, bandwidth and latency between machines, seconds of a neural
reward.

For each number of GPUs, seconds of

- model: rollout and update, shared evenly;
- reward: what is left of scoring after the rollout that hides it. OCR runs beside the GPU: hidden
  but for the last batch, or for what the workers cannot do in the time of the others. A neural
  reward runs on the GPU: never hidden;
- reduce: a ring's mean of the LoRA gradients, ``2 (N - 1) / N`` of their bytes and ``2 (N - 1)``
  latencies, an update.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from star.config.params import Params
from star.config.reading import load_params
from star.plan.configs import pipeline_configs
from star.plan.counts import count
from star.plan.models import build_pipeline
from star.plan.operations import Costs, count_costs, count_operations
from star.rewards.ocr import ppocrv4
from star.rewards.reading import read_images
from star.system.runtime import keep_freed_memory

FLOAT = 4  # bytes
SIDE = 512  # pixels of an image


@dataclasses.dataclass(frozen=True)
class Assumed:
    """What has not been measured.

    Attributes:
        tflops: 10^12 operations/s of a GPU.
        bandwidth: bytes/s of the slowest link.
        latency: seconds a message.
        neural: seconds in which a GPU scores an image (GenEval's detector; the aim is ten
            images/s).
    """

    tflops: float
    bandwidth: float
    latency: float
    neural: float


def larger_batch(params: Params) -> Params:
    """Return the recipe for more GPUs than its batches can be shared by.

    It has 64 prompts in place of 48, and three images a pass.
    """
    return dataclasses.replace(
        params,
        train=dataclasses.replace(params.train, prompts_per_epoch=64),
        rollout=dataclasses.replace(params.rollout, batch=3),
    )


def epoch_costs(
    params: Params, gpus: int, reading: float, assumed: Assumed, costs: Costs, adapter: int
) -> dict[str, float]:
    """Return the seconds of an epoch by part, and images/s of all GPUs, by kind of reward.

    Args:
        reading: seconds in which one core reads an image.
        costs: operations of a sequence and of decoding.
        adapter: numbers that the gradients' mean sends.
    """
    counts, rate = count(params, gpus), assumed.tflops * 1e12 * gpus
    operations = count_operations(params.with_method("star"), costs)
    rollout, update = (
        work / params.train.epochs / rate for work in (operations.rollout, operations.update)
    )
    images, workers = counts.images_per_epoch / gpus, params.rewards.ocr.workers
    last = rollout / counts.batches_per_process  # nothing is drawn beside the last batch
    ocr = max(
        params.rollout.batch * reading / workers, images * reading / workers - (rollout - last)
    )
    sent = 2 * (gpus - 1) / gpus * FLOAT * adapter
    messages = 2 * (gpus - 1) * assumed.latency
    reduce = counts.updates_per_epoch * (sent / assumed.bandwidth + messages) if gpus > 1 else 0.0
    seconds = {
        "rollout": rollout,
        "update": update,
        "reduce": reduce,
        "ocr": ocr,
        "neural": images * assumed.neural,
    }
    model = rollout + update + reduce
    return {
        "gpus": gpus,
        "images": counts.images_per_epoch,
        "images_a_gpu_and_update": images / counts.updates_per_epoch,
        **{f"{name}_s": round(value, 3) for name, value in seconds.items()},
        "images_per_s_ocr": round(counts.images_per_epoch / (model + ocr), 2),
        "images_per_s_neural": round(counts.images_per_epoch / (model + seconds["neural"]), 2),
    }


def reading_time(images: int, side: int) -> float:
    """Return the seconds in which one core reads an image with a word in large letters."""
    rng = np.random.default_rng(0)
    words = [
        "".join(rng.choice(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), size=rng.integers(4, 9)))
        for _ in range(images)
    ]
    drawn = np.stack([sign(word, rng) for word in words])
    reader = ppocrv4(side)
    read_images(reader, drawn[:2], words[:2])  # the first calls allocate
    start = time.process_time()
    reads = read_images(reader, drawn, words)
    elapsed = time.process_time() - start
    assert np.mean([word in read for word, read in zip(words, reads, strict=True)]) > 0.5, (
        "the signs must be legible"
    )
    return elapsed / images


def sign(word: str, rng: np.random.Generator) -> np.ndarray:
    """Draw a word across an image of smooth noise: uint8 (512, 512, 3)."""
    low = Image.fromarray(rng.integers(120, 255, (8, 8, 3), dtype=np.uint8))
    image = low.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    font = ImageFont.load_default(size=480 // len(word))
    ImageDraw.Draw(image).text(
        (SIDE // 2, SIDE // 2), word, fill=(20, 20, 20), font=font, anchor="mm"
    )
    return np.asarray(image)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=Path, default=Path("presets/sd35m-32gpu-ocr.yaml"))
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 32, 256])
    parser.add_argument(
        "--tflops",
        type=float,
        default=300.0,
        help="10^12 operations/s a GPU achieves; default: 300",
    )
    parser.add_argument(
        "--bandwidth", type=float, default=25e9, help="bytes/s between machines; default: 25e9"
    )
    parser.add_argument(
        "--latency", type=float, default=20e-6, help="seconds a message; default: 20e-6"
    )
    parser.add_argument(
        "--neural",
        type=float,
        default=0.1,
        help="seconds an image of a neural reward; default: 0.1",
    )
    parser.add_argument(
        "--images", type=int, default=50, help="that are read to measure OCR; default: 50"
    )
    options = parser.parse_args()
    keep_freed_memory()
    params = load_params(options.params)
    assumed = Assumed(options.tflops, options.bandwidth, options.latency, options.neural)
    reading = reading_time(options.images, params.rewards.ocr.read_side)
    share = params.images_per_epoch // params.rollout.batch // params.train.updates_per_epoch
    configs = pipeline_configs(params.model.path)
    assert configs is not None  # SD3.5-M's sizes are known
    pipeline = build_pipeline(configs, params.model)
    costs, adapter = count_costs(pipeline, params.model, fused=True), pipeline.adapter
    rows = [
        epoch_costs(
            larger_batch(params) if share % gpus else params, gpus, reading, assumed, costs, adapter
        )
        for gpus in options.gpus
    ]
    figures = {
        "assumed": dataclasses.asdict(assumed),
        "ocr_s_a_image": round(reading, 4),
        "epochs": rows,
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
