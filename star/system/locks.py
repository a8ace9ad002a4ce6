"""A lock on a folder that ends with its process, however that ends."""

import errno
import fcntl
import os
import platform
from pathlib import Path

from star.system.errors import StarError, writing


def take_lock(path: Path, owner: str) -> int:
    """Lock until the process ends or the returned descriptor is closed. The file stays; what counts
    is the lock on it.

    Args:
        path: of the lock file, in the folder that is locked.
        owner: who locks, for the other's message.

    Raises:
        StarError: another process holds it, or the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(
            path, os.O_RDWR | os.O_CREAT, 0o644
        )  # no file object, which would unlock when collected
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            other = os.read(descriptor, 200).decode(errors="replace") or "another process"
            os.close(descriptor)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise StarError(
                    f"{path}: this file system cannot lock ({error.strerror}); use another folder"
                ) from error
            raise StarError(
                f"{path}: {other} is at work in this folder; wait for it, or stop it first"
            ) from error
        if _is_file(descriptor, path):
            break
        os.close(descriptor)  # its owner ended, and removed it, between the two calls
    with writing(path):
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{owner} (process {os.getpid()} on {platform.node()})".encode())
    return descriptor


def _is_file(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
