"""Images: reading one, a sheet of several, and an allocation map laid on its image."""

from pathlib import Path

import numpy as np
from PIL import Image

from star.system.errors import StarError

MAP_SIDE = 192  # pixels of a saved overlay
# Colours of a map: of its least weight, half way, of its greatest.
_STOPS = (0.0, 0.5, 1.0)
_COLORS = np.array([(15, 10, 60), (200, 45, 70), (255, 225, 90)], np.float32)


def read_image(path: Path, side: int) -> np.ndarray:
    """Return a square PNG of ``side`` pixels, uint8 (side, side, 3).

    Grey and palette images become RGB. What would need a choice (transparency, 16 bits, CMYK) is
    refused, and so is another size: scores of resized images are not comparable.

    Raises:
        StarError: missing, no PNG, of another size or kind, or damaged; names the file and the fix.
            Nothing is decoded before the header is right.
    """
    wanted = f"give a PNG of {side} x {side} pixels"
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.size != (side, side):
                size = f"{image.width} x {image.height} pixels; model.resolution is {side}"
                raise StarError(f"{path}: {size}: {wanted}")
            if image.mode not in ("1", "L", "P", "RGB") or "transparency" in image.info:
                kind = "transparency" if "transparency" in image.info else f"mode {image.mode}"
                raise StarError(f"{path}: {kind}; give 8-bit RGB without transparency")
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise StarError(f"{path}: no such image") from None
    except StarError:
        raise
    except Exception as error:  # for a damaged chunk Pillow raises errors of many kinds
        raise StarError(f"{path}: not a readable PNG ({error}); {wanted}") from error


def grid(images: np.ndarray, columns: int) -> Image.Image:
    """Return images (n, height, width, 3) as one sheet, row by row, with margins of 2 pixels."""
    _, height, width, _ = images.shape
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (height + 2) + 2, columns * (width + 2) + 2, 3), 255, np.uint8)
    for index, image in enumerate(images):
        y, x = 2 + (index // columns) * (height + 2), 2 + (index % columns) * (width + 2)
        sheet[y : y + height, x : x + width] = image
    return Image.fromarray(sheet)


def overlay(
    image: np.ndarray, weights: np.ndarray, scale: tuple[float, float] | None = None
) -> Image.Image:
    """Return an allocation map (locations,) in colour on its image in grey, `MAP_SIDE` wide.

    Args:
        scale: weights of the darkest and the brightest colour; None takes the map's own.
    """
    side, size = int(len(weights) ** 0.5), (MAP_SIDE, MAP_SIDE)
    low, high = scale or (float(weights.min()), float(weights.max()))
    share = (weights.reshape(side, side).astype(np.float32) - low) / max(high - low, 1e-6)
    level = Image.fromarray((share * 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grey = Image.fromarray(image).convert("L").resize(size, Image.Resampling.LANCZOS)
    return Image.fromarray(paint(np.asarray(level, np.float32) / 255, np.asarray(grey)))


def paint(level: np.ndarray, grey: np.ndarray) -> np.ndarray:
    """Return the colours of levels in [0, 1] on grey pixels, uint8 (height, width, 3)."""
    painted = np.stack([np.interp(level, _STOPS, channel) for channel in _COLORS.T], axis=-1)
    mixed = 0.75 * painted + 0.25 * grey.astype(np.float32)[..., None]
    return mixed.clip(0, 255).astype(np.uint8)
