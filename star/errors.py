"""Errors that the command line turns into one line on standard error and an exit status, and how it shows a value."""

from typing import Any

SHOWN = 80  # characters of a value in a message


class StarError(ValueError):
    """Bad input from the user: the message names the file, key or record and the mend."""

    status = 1  # of the process


class Interrupted(StarError):
    """The process was asked to stop (`star.interruption`), and its work is saved: run the same command again."""

    status = 75  # "try again later" of sysexits.h


def shown(value: Any) -> str:
    """A value as Python writes it, cut to `SHOWN` characters."""
    return cut(repr(value))


def cut(text: str, most: int = SHOWN) -> str:
    """The start and the end of a text that is too long."""
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"
