"""Images of a run: reading them, sample grids, and allocation maps laid on the image that they
belong to."""

from pathlib import Path

import numpy as np
from PIL import Image

from star.system.errors import StarError

MAP_SIDE = 192  # pixels of a saved overlay


def read_image(path: Path, side: int) -> np.ndarray:
    """A square image of ``side`` pixels, uint8 (side, side, 3); nothing is decoded before its
    header is right.

    Grey and palette images become RGB as they are; whatever else would need a choice
    (transparency, 16 bits, CMYK) is refused, and so is another size, because scores of resized
    images are not comparable.

    Raises:
        StarError: missing, no PNG, of another size or kind, or damaged; names the file and the
    mend."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.size != (side, side):
                raise StarError(
                    f"{path}: {image.width} x {image.height} pixels; model.resolution is {side}: give images of "
                    f"{side} x {side} pixels"
                )
            if image.mode not in ("1", "L", "P", "RGB") or "transparency" in image.info:
                kind = "transparency" if "transparency" in image.info else f"mode {image.mode}"
                raise StarError(f"{path}: {kind}; give 8-bit RGB without transparency")
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise StarError(f"{path}: no such image") from None
    except Image.DecompressionBombError as error:
        raise StarError(f"{path}: {error}; give images of {side} x {side} pixels") from error
    except StarError:
        raise
    except Exception as error:  # of a damaged chunk Pillow also raises IndexError, TypeError, struct.error, zlib.error
        raise StarError(f"{path}: not a readable PNG ({error}); write it again") from error


def grid(images: np.ndarray, columns: int) -> Image.Image:
    """Images (n, height, width, 3) as one sheet, row by row, with a margin of 2 pixels."""
    _, height, width, _ = images.shape
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (height + 2) + 2, columns * (width + 2) + 2, 3), 255, np.uint8)
    for index, image in enumerate(images):
        y, x = 2 + (index // columns) * (height + 2), 2 + (index % columns) * (width + 2)
        sheet[y : y + height, x : x + width] = image
    return Image.fromarray(sheet)


def overlay(image: np.ndarray, weights: np.ndarray) -> Image.Image:
    """An allocation map (locations,), dark for its least weight, yellow for its greatest, with the
    image in grey."""
    side = int(len(weights) ** 0.5)
    share = weights.reshape(side, side).astype(np.float32)
    share = (share - share.min()) / max(float(share.max() - share.min()), 1e-6)
    heat = Image.fromarray((share * 255).astype(np.uint8)).resize(
        (MAP_SIDE, MAP_SIDE), Image.Resampling.BICUBIC
    )
    level = np.asarray(heat, np.float32) / 255
    stops, colors = (
        (0.0, 0.5, 1.0),
        np.array([(15, 10, 60), (200, 45, 70), (255, 225, 90)], np.float32),
    )
    painted = np.stack([np.interp(level, stops, channel) for channel in colors.T], axis=-1)
    grey = (
        Image.fromarray(image).convert("L").resize((MAP_SIDE, MAP_SIDE), Image.Resampling.LANCZOS)
    )
    mixed = 0.75 * painted + 0.25 * np.asarray(grey, np.float32)[..., None]
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))
