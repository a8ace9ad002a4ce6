"""Lists that lie as text files next to this module, one entry per line."""

from pathlib import Path


def read_list(name: str) -> tuple[str, ...]:
    """Return the lines of a file of this package in their order, which decides what is drawn."""
    return tuple((Path(__file__).parent / name).read_text(encoding="utf-8").splitlines())


# Common English words of two to five letters, for signs: each fits the miniature's board.
WORDS = read_list("words.txt")
