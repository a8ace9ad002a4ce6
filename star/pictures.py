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
    """An allocation map (locations,), dark for its least weight, yellow for its greatest, with the picture in grey."""
    side = int(len(weights) ** 0.5)
    share = weights.reshape(side, side).astype(np.float32)
    share = (share - share.min()) / max(float(share.max() - share.min()), 1e-6)
    heat = Image.fromarray((share * 255).astype(np.uint8)).resize((MAP_SIDE, MAP_SIDE), Image.Resampling.BICUBIC)
    level = np.asarray(heat, np.float32) / 255
    stops, colors = (0.0, 0.5, 1.0), np.array([(15, 10, 60), (200, 45, 70), (255, 225, 90)], np.float32)
    painted = np.stack([np.interp(level, stops, channel) for channel in colors.T], axis=-1)
    grey = Image.fromarray(picture).convert("L").resize((MAP_SIDE, MAP_SIDE), Image.Resampling.LANCZOS)
    mixed = 0.75 * painted + 0.25 * np.asarray(grey, np.float32)[..., None]
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))
