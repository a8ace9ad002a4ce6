"""Locks on folders: one process at a time, until it releases the lock or ends, however it ends."""

import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from star.system.errors import StarError, writing

# A second try, where the owner ends and removes the file just while it is locked here.
_SECONDS = 0.1
_taken: list["Lock"] = []  # a lock that nobody refers to would be released


class Lock(FileLock):
    """A lock that is held already: leaving its ``with`` block, or `release`, gives it back."""

    def __enter__(self) -> Self:
        return self


def take_lock(path: Path, owner: str) -> Lock:
    """Lock a folder until the lock is released or this process ends.

    The file stays when the lock ends: what counts is the lock on it.

    Args:
        path: lock file in the folder.
        owner: command that locks, for the message to others.

    Raises:
        StarError: another process holds it (the file and the owner are named), the folder cannot be
            written, or the file system has no locks.
    """
    # The file stays, so that another user of a shared folder must be able to open it.
    lock = Lock(path, timeout=_SECONDS, mode=0o666, thread_local=False, fallback_to_soft=False)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            path.write_text(f"{owner} (process {os.getpid()} on {platform.node()})", "utf-8")
    except Timeout as error:
        other = "another process"
        with suppress(OSError):  # it ended, and removed its file
            other = path.read_text("utf-8", "replace")[:200] or other
        raise StarError(
            f"{path}: {other} is at work in this folder; wait for it, or stop it first"
        ) from error
    except OSError as error:
        raise StarError(
            f"{path}: cannot be locked ({error.strerror}); use a folder on another file system"
        ) from error
    _taken.append(lock)
    return lock
