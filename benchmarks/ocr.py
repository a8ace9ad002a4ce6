"""Speed and accuracy of the OCR reader on rendered signs: ``python -m benchmarks.ocr [--params params.yaml]``.

Reads signs with random words, clean and degraded (blurred with a Gaussian of 0.6 pixels, noise of standard deviation 8,
about what a generated picture looks like): "ours" with the settings of `params.yaml`, "stock" with rapidocr's own least
width of the recogniser's input and larger enlargements. Prints one JSON object; "ms" is CPU time of one thread, per
picture, "agree" the share of pictures read as "ours" reads them.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from star.miniature.world import LETTERS, WORD_LENGTHS, Scene, render
from star.params import load_params
from star.rewards import ocr
from star.rewards.reading import read_pictures
from star.runtime import keep_freed_memory

STOCK_WIDTH = 320  # pixels, least width of the recogniser's input in rapidocr's configuration
STOCK_SIDES = (192, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--signs", type=int, default=200, metavar="N", help="number of signs (default 200)")
    arguments = parser.parse_args()
    side = load_params(arguments.params).rewards.ocr.read_side
    keep_freed_memory()
    words = random_words(arguments.signs, np.random.default_rng(0))
    clean = [render(Scene(text=word)) for word in words]
    noise = np.random.default_rng(1)
    pictures = {"clean": clean, "degraded": [degraded(picture, noise) for picture in clean]}
    result: dict = {"signs": len(words), "read_side": side}
    for name, images in pictures.items():
        batch = np.stack(images)
        ours, result[f"ours, {name}"] = measure(batch, words, side)
        ocr.reader().text_rec.rec_image_shape[2], width = STOCK_WIDTH, ocr.reader().text_rec.rec_image_shape[2]
        for stock_side in STOCK_SIDES:
            reads, facts = measure(batch, words, stock_side)
            agree = float(np.mean([a == b for a, b in zip(ours, reads, strict=True)]))
            result[f"stock {stock_side}, {name}"] = facts | {"agree": agree}
        ocr.reader().text_rec.rec_image_shape[2] = width
    print(json.dumps(result, indent=2))


def measure(images: np.ndarray, words: list[str], side: int) -> tuple[list[str], dict[str, float]]:
    """What is read, normalised; milliseconds a picture, share read exactly and mean reward."""
    reader = ocr.ppocrv4(side)
    read_pictures(reader, images[:5], words[:5])  # the first calls allocate
    start = time.process_time()
    reads = read_pictures(reader, images, words)
    milliseconds = 1000 * (time.process_time() - start) / len(words)
    scores = [ocr.text_reward(read, word, substring=False) for read, word in zip(reads, words, strict=True)]
    facts = {
        "ms": round(milliseconds, 2),
        "exact": float(np.mean([score == 1 for score in scores])),
        "reward": round(float(np.mean(scores)), 4),
    }
    return [ocr.normalized(read) for read in reads], facts


def random_words(count: int, rng: np.random.Generator) -> list[str]:
    """Words of the miniature's lengths, letters drawn uniformly."""
    low, high = WORD_LENGTHS
    return ["".join(rng.choice(list(LETTERS), size=rng.integers(low, high + 1))) for _ in range(count)]


def degraded(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture blurred (0.6 pixels) and with Gaussian noise (standard deviation 8 of 255): uint8."""
    blurred = np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(0.6)), np.float32)
    return np.clip(blurred + rng.normal(0, 8, picture.shape) + 0.5, 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
