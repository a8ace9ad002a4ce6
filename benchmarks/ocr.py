"""Measure speed and accuracy of the OCR readers on rendered text.

    python -m benchmarks.ocr [--params params.yaml] > benchmarks/figures/ocr.json

There are signs of the miniature's world with random words, and posters of 512 pixels with one word
somewhere. Each is there clean and degraded: blurred with a Gaussian of 0.6 pixels, with noise of
standard deviation 8, about what a generated image looks like.

- "ours": the reward's PP-OCRv4 with the settings of `params.yaml`;
- "stock": the same with rapidocr's own least width of the recogniser's input, and larger
  enlargements;
- "PP-OCRv6": the second reader with images enlarged to several sides, the first of which it uses;
- "template": the matched letters.

Prints one JSON object. "ms" is CPU time of one thread an image, "agree" the share of images that
are read as "ours" reads them.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from star.config.reading import load_params
from star.evaluation.held_out_reader import PPOCRV6
from star.miniature.reader import read_letters
from star.miniature.world import LETTERS, WORD_LENGTHS, Scene, render
from star.rewards import ocr
from star.rewards.reading import TextReader, read_images
from star.system.runtime import keep_freed_memory

STOCK_WIDTH = 320  # pixels, least width of the recogniser's input in rapidocr's configuration
STOCK_SIDES = (192, 256)
SECOND_SIDES = (PPOCRV6.side, 96, 128, 192, 256)
POSTER = 512  # pixels
POSTER_LETTERS = (24, 72)  # pixels, size of the font

Read = Callable[[np.ndarray], list[str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument(
        "--signs",
        type=int,
        default=300,
        metavar="N",
        help="number of signs, and posters (default 300)",
    )
    arguments = parser.parse_args()
    side = load_params(arguments.params).rewards.ocr.read_side
    keep_freed_memory()
    words = random_words(arguments.signs, np.random.default_rng(0))
    placing = np.random.default_rng(2)
    shown = {
        "signs": [render(Scene(text=word)) for word in words],
        "posters": [poster(word, placing) for word in words],
    }
    readers = {"ours": reading(ocr.ppocrv4(side))}
    small = {f"stock {stock}": stock_reading(stock) for stock in STOCK_SIDES}
    small |= {f"PP-OCRv6 {s}": reading(dataclasses.replace(PPOCRV6, side=s)) for s in SECOND_SIDES}
    small["template"] = read_letters
    more = {"signs": small, "posters": {"PP-OCRv6": reading(PPOCRV6)}}
    result: dict = {"images": len(words), "read_side": side}
    for kind, clean in shown.items():
        noise = np.random.default_rng(1)
        for state, images in (
            ("clean", clean),
            ("degraded", [degraded(image, noise) for image in clean]),
        ):
            result |= compare(readers | more[kind], np.stack(images), words, f"{state} {kind}")
    print(json.dumps(result, indent=2))


def compare(
    readers: dict[str, Read], images: np.ndarray, words: list[str], title: str
) -> dict[str, dict[str, float]]:
    """Return each reader's `measure`, and how often it reads what the first one does."""
    found = {name: measure(read, images, words) for name, read in readers.items()}
    ours = next(iter(found.values()))[0]
    return {
        f"{name}, {title}": facts
        | {"agree": round(float(np.mean([a == b for a, b in zip(ours, reads, strict=True)])), 4)}
        for name, (reads, facts) in found.items()
    }


def measure(read: Read, images: np.ndarray, words: list[str]) -> tuple[list[str], dict[str, float]]:
    """Return what is read, normalised, and the figures.

    These are milliseconds an image, share read exactly and mean reward.
    """
    read(images[:5])  # the first calls allocate
    start = time.process_time()
    reads = read(images)
    milliseconds = 1000 * (time.process_time() - start) / len(words)
    scores = [
        ocr.text_reward(read, word, substring=False)
        for read, word in zip(reads, words, strict=True)
    ]
    facts = {
        "ms": round(milliseconds, 2),
        "exact": round(float(np.mean([score == 1 for score in scores])), 4),
        "reward": round(float(np.mean(scores)), 4),
    }
    return [ocr.normalized(read) for read in reads], facts


def reading(reader: TextReader) -> Read:
    """Return the function that reads images with ``reader``, in this process."""
    return lambda images: read_images(
        reader, images, [str(number) for number in range(len(images))]
    )


def stock_reading(side: int) -> Read:
    """Return ``reading`` with PP-OCRv4 at ``side`` and rapidocr's own least width."""

    def read(images: np.ndarray) -> list[str]:
        shape = ocr.reader().text_rec.rec_image_shape
        shape[2], width = STOCK_WIDTH, shape[2]
        try:
            return reading(ocr.ppocrv4(side))(images)
        finally:
            shape[2] = width

    return read


def random_words(count: int, rng: np.random.Generator) -> list[str]:
    """Draw words of the miniature's lengths, letters uniformly."""
    low, high = WORD_LENGTHS
    return [
        "".join(rng.choice(list(LETTERS), size=rng.integers(low, high + 1))) for _ in range(count)
    ]


def poster(word: str, rng: np.random.Generator) -> np.ndarray:
    """Draw a word in two colours at a random place and size on a two-coloured image.

    Returns uint8 (`POSTER`, `POSTER`, 3).
    """
    upper, lower = (tuple(int(value) for value in rng.integers(60, 200, 3)) for _ in range(2))
    image = Image.new("RGB", (POSTER, POSTER), upper)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, int(rng.integers(100, POSTER - 100)), POSTER, POSTER), lower)
    font = ImageFont.load_default(float(rng.integers(*POSTER_LETTERS)))
    left, top, right, bottom = draw.textbbox((0, 0), word, font=font, stroke_width=2)
    place = (
        rng.integers(8, POSTER - 8 - int(right - left)),
        rng.integers(8, POSTER - 8 - int(bottom - top)),
    )
    draw.text(
        (place[0] - left, place[1] - top),
        word,
        "white",
        font=font,
        stroke_width=2,
        stroke_fill="black",
    )
    return np.asarray(image)


def degraded(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur the image (0.6 pixels) and add Gaussian noise (standard deviation 8 of 255): uint8."""
    blurred = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(0.6)), np.float32)
    return np.clip(blurred + rng.normal(0, 8, image.shape) + 0.5, 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
