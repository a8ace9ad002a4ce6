"""List the licences of what `make install` installs, from the packages' own metadata.

    python docs/list_licences.py > docs/licences.csv

Run it after a change of constraints.txt.
"""

import csv
import sys
from importlib.metadata import distribution
from pathlib import Path

CONSTRAINTS = Path("constraints.txt")


def pinned() -> list[str]:
    """Return the names of constraints.txt, in its order."""
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    return [line.partition("==")[0] for line in lines if line and not line.startswith("#")]


def licence(package: str) -> str:
    """Return what an installed package's metadata says of its licence.

    That is its SPDX expression, its classifiers, its field, or its licence file.

    Raises:
        importlib.metadata.PackageNotFoundError: it is not installed.
        ValueError: it says nothing.
    """
    found = distribution(package)
    classifiers = [
        c.split(" :: ")[-1]
        for c in found.metadata.get_all("Classifier", [])
        if c.startswith("License")
    ]
    files = [
        file for file in found.files or () if file.name.upper().startswith(("LICENSE", "LICENCE"))
    ]
    said = (
        found.metadata.get("License-Expression"),
        " / ".join(name for name in classifiers if name != "OSI Approved"),
        (found.metadata.get("License") or "").strip().split("\n")[0],
        *(file.locate().read_text(encoding="utf-8").strip().split("\n")[0] for file in files),
    )
    for text in said:
        if text and text != "UNKNOWN":
            return text
    raise ValueError(f"{package}: says nothing of its licence")


if __name__ == "__main__":
    rows = [[package, licence(package)] for package in pinned()]
    csv.writer(sys.stdout, lineterminator="\n").writerows([["package", "licence"], *rows])
