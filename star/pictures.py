"""Pictures of a run: sample grids, and allocation maps laid on the picture that they belong to."""

import numpy as np
from PIL import Image

MAP_SIDE = 192  # pixels of a saved overlay


def grid(pictures: np.ndarray, columns: int) -> Image.Image:
    """Pictures (n, height, width, 3) as one sheet, row by row, with a margin of 2 pixels."""
    _, height, width, _ = pictures.shape
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (height + 2) + 2, columns * (width + 2) + 2, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        y, x = 2 + (index // columns) * (height + 2), 2 + (index % columns) * (width + 2)
        sheet[y : y + height, x : x + width] = picture
    return Image.fromarray(sheet)


def overlay(picture: np.ndarray, weights: np.ndarray) -> Image.Image:
    """An allocation map (locations,) over its picture: dimmed where the weight is low, red where it is high."""
    side = int(len(weights) ** 0.5)
    share = weights.reshape(side, side).astype(np.float32)
    share = (share - share.min()) / max(float(share.max() - share.min()), 1e-6)
    heat = Image.fromarray((share * 255).astype(np.uint8)).resize((MAP_SIDE, MAP_SIDE), Image.Resampling.BICUBIC)
    alpha = np.asarray(heat, np.float32)[..., None] / 255
    base = Image.fromarray(picture).resize((MAP_SIDE, MAP_SIDE), Image.Resampling.LANCZOS)
    dimmed = np.asarray(base, np.float32) * 0.35 + 40
    hot = np.asarray(base, np.float32) * 0.5 + np.array([255, 60, 30], np.float32) * 0.5
    return Image.fromarray((dimmed + alpha * (hot - dimmed)).clip(0, 255).astype(np.uint8))
