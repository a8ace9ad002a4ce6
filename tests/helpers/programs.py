"""Programs that are no Python packages and that some tests need. In CI they are installed."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path


def missing(programs: Sequence[str], packages: str) -> str | None:
    """Why one of the programs cannot be had; None if all are here. In CI Debian's packages are
    installed for it."""
    if os.environ.get("CI") and not all(map(shutil.which, programs)) and shutil.which("apt-get"):
        # One test process at a time: apt-get does not wait for another.
        with Path(tempfile.gettempdir(), "star-tests-apt.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            command = f"apt-get update && apt-get install --yes --no-install-recommends {packages}"
            try:
                subprocess.run(["sh", "-c", command], capture_output=True, timeout=600)
            except subprocess.TimeoutExpired as error:
                return str(error)
    absent = [program for program in programs if shutil.which(program) is None]
    return f"{', '.join(absent)}: not found (apt-get install {packages})" if absent else None
