"""Errors that the command line turns into one line on standard error and an exit status."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SHOWN = 80  # characters of a value in a message


class StarError(ValueError):
    """Bad input from the user: the message names the file, key or record, and how to fix it."""

    status = 1  # exit status of the process


class Interrupted(StarError):
    """The process was asked to stop and has saved its work: run the same command again."""

    status = 75  # "try again later" in sysexits.h


# No room, no room for this user, too large for the file system, folders that cannot be written,
# names that are none or belong to something else, and a broken disk.
_DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO),
)


def disk_error(error: Exception, path: Path | None = None) -> StarError | None:
    """Return what to tell the user of an error of the disk or a folder, None for other errors.

    Args:
        error: of Python, or of a library that passes the system's number on in its text.
        path: what was to be written, where the error may not say it.
    """
    number = getattr(error, "errno", None)
    # As safetensors and shutil write it.
    if number is None and (told := re.search(r"(?:os error|\[Errno) (\d+)", str(error))):
        number = int(told[1])
    if number not in _DISK_ERRORS:
        return None
    what = f"{path}: {os.strerror(number)}" if path else error
    return StarError(f"{what}; make room or give a place that can be written, and run it again")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise a StarError in place of a `disk_error` while a file or folder is written."""
    try:
        yield
    except Exception as error:
        if isinstance(error, StarError) or not (said := disk_error(error, path)):
            raise
        raise said from error


def shown(value: Any) -> str:
    """Return a value as Python writes it, cut to `SHOWN` characters."""
    return cut(repr(value))


def cut(text: str, most: int = SHOWN) -> str:
    """Return the start and the end of a text that is too long."""
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"
