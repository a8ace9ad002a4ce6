"""Digests of what decides a result: the package's code, the files of a model."""

import hashlib
from pathlib import Path

_PIECE, _PIECES = 4096, 1024  # bytes, and how many of a large file
_CODE = (".py", ".yaml", ".txt")  # suffixes; the templates of pages and cards decide nothing
_DECIDING = (".safetensors", ".json", ".txt", ".model")  # suffixes; a model's card decides nothing


def code_digest() -> str:
    """Return a digest that changes with any Python file of the package, or any that these read."""
    code = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*")):
        if file.suffix in _CODE:
            code.update(file.read_bytes())
    return code.hexdigest()


def folder_digest(folder: Path) -> str:
    """Return a digest of the descriptions and weights in a model's folder, wherever it lies.

    Of a file above 4 MiB only its size and 1,024 pieces of 4 KiB count: training changes every
    weight, and reading gigabytes would delay each start.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.suffix not in _DECIDING or not file.is_file():
            continue
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder)} {size} ".encode())
        with open(file, "rb") as opened:
            for start in range(0, size, max(_PIECE, size // _PIECES)):
                opened.seek(start)
                digest.update(opened.read(_PIECE))
    return digest.hexdigest()
