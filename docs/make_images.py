"""Make README's image of allocation maps.

python docs/make_images.py results/train/geneval-star
"""

import json
import sys
from pathlib import Path

from PIL import Image

SIDE, GAP = 112, 4


def main(training: Path, output: Path) -> None:
    """Draw the last saved maps of a training.

    Each row is a prompt: the finished image first, then every denoising step.
    """
    entries = json.loads((training / "maps" / "maps.json").read_text(encoding="utf-8"))
    last = [entry for entry in entries if entry["epoch"] == entries[-1]["epoch"]]
    columns = 1 + len(last[0]["maps"])
    sheet = Image.new(
        "RGB", (columns * (SIDE + GAP) + GAP, len(last) * (SIDE + GAP) + GAP), "white"
    )
    for row, entry in enumerate(last):
        for column, name in enumerate([entry["final"], *entry["maps"]]):
            image = Image.open(training / "maps" / name).resize(
                (SIDE, SIDE), Image.Resampling.LANCZOS
            )
            sheet.paste(image, (GAP + column * (SIDE + GAP), GAP + row * (SIDE + GAP)))
    sheet.save(output)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent / "allocation-maps.png")
