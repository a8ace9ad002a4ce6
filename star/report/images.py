"""Images of the page: which are shown (fixed rules, never picked by hand), and how they are
embedded."""

import base64
import io
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from star.report.run import Checkpoint, ImageScore, MapRow, Run, Training
from star.system.errors import StarError

BUDGET_BYTES = 6 * 2**20  # of all embedded images together, before base64 adds a third
LARGEST_SIDE, SMALLEST_SIDE = 256, 64  # pixels
MAP_ROWS, MAP_STEPS = 3, 8  # samples a training, steps a sample
_QUALITIES = (85, 60, 30, 5)  # of WebP, until an image fits
_BYTES_PER_PIXEL = 0.4  # of a WebP photograph at the best of these, a generous figure


@dataclass(frozen=True)
class Pair:
    """One prompt's image from base and from each method trained on its task, all from one
    seed."""

    images: tuple[tuple[str, ImageScore], ...]  # (base or method, image)

    @property
    def prompt(self) -> str:
        return self.images[0][1].prompt


def choose_pairs(run: Run, task: str, count: int) -> list[Pair]:
    """The first test prompts of a task, first image of each; GenEval's tags take turns.

    Empty if nothing was trained on the task or base was not evaluated on it.
    """
    own = [checkpoint for checkpoint in run.trained if checkpoint.task == task]
    if not own:
        return []
    positions = [
        k for k, image in enumerate(run.base.images) if image.task == task and image.index == 0
    ]
    seen: Counter[str] = Counter()
    turns = []
    for position in positions:
        tag = str(run.base.images[position].detail.get("tag"))
        turns.append((seen[tag], position))
        seen[tag] += 1
    return [_pair(run.base, own, position) for _, position in sorted(turns)[:count]]


def choose_maps(training: Training) -> list[MapRow]:
    """The first samples of the last epoch whose maps were saved, each thinned to at most
    `MAP_STEPS` steps."""
    last = max((row.epoch for row in training.maps), default=None)
    rows = [row for row in training.maps if row.epoch == last][:MAP_ROWS]
    return [_thin(row) for row in rows]


def embedder(count: int) -> Callable[[Path], str]:
    """`data_uri` at a size at which ``count`` images fit a page together; a file is read once."""
    limit = BUDGET_BYTES // max(1, count)

    @cache
    def embed(path: Path) -> str:
        return data_uri(path, limit)

    return embed


def data_uri(path: Path, limit: int) -> str:
    """An image as a data URI of about `limit` bytes at most, before base64 adds a third.

    A PNG of at most `LARGEST_SIDE` pixels that fits stays as it is; any other image becomes a
    WebP, made smaller and, if that is not enough, coarser until it fits.

    Raises:
        StarError: the file is not an image.
    """
    try:
        with Image.open(path) as image:
            small = max(image.size) <= LARGEST_SIDE and path.stat().st_size <= limit
            if small and image.format == "PNG":
                return _uri("image/png", path.read_bytes())
            shown = image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise StarError(
            f"{path}: not a readable image ({error}); make it again or delete it"
        ) from error
    side = int(min(LARGEST_SIDE, max(SMALLEST_SIDE, math.sqrt(limit / _BYTES_PER_PIXEL))))
    shown.thumbnail((side, side), Image.Resampling.LANCZOS)
    return _uri("image/webp", _webp(shown, limit))


def _webp(image: Image.Image, limit: int) -> bytes:
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=quality)
        if buffer.tell() <= limit:
            break
    return buffer.getvalue()


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _pair(base: Checkpoint, own: list[Checkpoint], position: int) -> Pair:
    methods = tuple(
        (checkpoint.method or checkpoint.name, checkpoint.images[position]) for checkpoint in own
    )
    return Pair((("base", base.images[position]), *methods))


def _thin(row: MapRow) -> MapRow:
    count = len(row.steps)
    if count <= MAP_STEPS:
        return row
    kept = [round(k * (count - 1) / (MAP_STEPS - 1)) for k in range(MAP_STEPS)]
    steps, maps = tuple(row.steps[k] for k in kept), tuple(row.maps[k] for k in kept)
    return MapRow(row.epoch, row.prompt, row.reward, row.advantage, steps, row.final, maps)
