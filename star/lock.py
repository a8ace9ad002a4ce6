"""A lock on a folder that ends with its process, however that ends."""

import fcntl
import os
import platform
from pathlib import Path

from star.errors import StarError


def take_lock(path: Path, owner: str) -> int:
    """Lock until the process ends or the returned descriptor is closed. The file stays; what counts is the lock on it.

    Args:
        path: of the lock file, in the folder that is locked.
        owner: who locks, for the other's message.

    Raises:
        StarError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)  # no file object, which would unlock when collected
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        other = os.read(descriptor, 200).decode(errors="replace") or "another process"
        os.close(descriptor)
        raise StarError(f"{path}: {other} is at work in this folder; wait for it, or stop it first") from error
    os.truncate(descriptor, 0)
    os.write(descriptor, f"{owner} (process {os.getpid()} on {platform.node()})".encode())
    return descriptor
