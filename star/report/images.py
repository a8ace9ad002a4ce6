"""Images of a page: which are shown (fixed rules, never picked by hand), how they are embedded."""

import base64
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from PIL import Image

from star.report.run import ImageScore, MapRow, Run, Training
from star.system.errors import StarError

BUDGET_BYTES = 6 * 2**20  # of all embedded images together, before base64 adds a third
LARGEST_SIDE, SMALLEST_SIDE = 256, 64  # pixels
MAP_ROWS, MAP_STEPS = 3, 8  # samples per training, steps per sample
_QUALITIES = (85, 60, 30, 5)  # of WebP, until an image fits
_BYTES_PER_PIXEL = 0.4  # of a WebP photograph at the best of these, a generous figure


@dataclass(frozen=True)
class Pair:
    """One prompt's images of several checkpoints, all from one seed."""

    images: tuple[tuple[str, ImageScore], ...]  # (base, method or run; image)

    @property
    def prompt(self) -> str:
        return self.images[0][1].prompt


def choose_pairs(run: Run, task: str, count: int) -> list[Pair]:
    """Return the first test prompts of a task, first image of each; GenEval's tags take turns.

    Empty if nothing was trained on the task or base was not evaluated on it.
    """
    own = [checkpoint for checkpoint in run.trained if checkpoint.task == task]
    labelled = [("base", run.base), *((c.method or c.name, c) for c in own)]
    seen: Counter[str] = Counter()
    turns = []
    for position, image in enumerate(run.base.images):
        if own and image.task == task and image.index == 0:
            tag = str(image.detail.get("tag"))
            turns.append((seen[tag], position))
            seen[tag] += 1
    chosen = (position for _, position in sorted(turns)[:count])
    return [Pair(tuple((label, c.images[k]) for label, c in labelled)) for k in chosen]


def choose_maps(training: Training) -> list[MapRow]:
    """Return the first samples of the last epoch whose maps were saved.

    Each is thinned to at most `MAP_STEPS` steps, evenly spread."""
    last = max((row.epoch for row in training.maps), default=None)
    rows = [row for row in training.maps if row.epoch == last][:MAP_ROWS]
    return [_thin(row) for row in rows]


def count_shown(pairs: Iterable[Pair], rows: Iterable[MapRow] = ()) -> int:
    """Count the images of a page."""
    return sum(len(pair.images) for pair in pairs) + sum(1 + len(row.maps) for row in rows)


def embedder(count: int) -> Callable[[Path], str]:
    """Return `data_uri` at a size at which ``count`` images fit a page; a file is read once."""
    limit = BUDGET_BYTES // max(1, count)
    return cache(lambda path: data_uri(path, limit))


def data_uri(path: Path, limit: int) -> str:
    """Return an image as a data URI of about `limit` bytes at most, before base64 adds a third.

    A PNG of at most `LARGEST_SIDE` pixels that fits stays as it is; any other image becomes a
    WebP, made smaller and, if that is not enough, coarser until it fits.

    Raises:
        StarError: the file is not an image.
    """
    try:
        with Image.open(path) as image:
            small = max(image.size) <= LARGEST_SIDE and path.stat().st_size <= limit
            if small and image.format == "PNG":
                return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
            smaller = image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise StarError(
            f"{path}: not a readable image ({error}); make it again or delete it"
        ) from error
    side = int(min(LARGEST_SIDE, max(SMALLEST_SIDE, math.sqrt(limit / _BYTES_PER_PIXEL))))
    smaller.thumbnail((side, side), Image.Resampling.LANCZOS)
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        smaller.save(buffer, "WEBP", quality=quality)
        if buffer.tell() <= limit:
            break
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _thin(row: MapRow) -> MapRow:
    count = len(row.steps)
    if count <= MAP_STEPS:
        return row
    kept = [round(k * (count - 1) / (MAP_STEPS - 1)) for k in range(MAP_STEPS)]
    steps, maps = tuple(row.steps[k] for k in kept), tuple(row.maps[k] for k in kept)
    return replace(row, steps=steps, maps=maps)
