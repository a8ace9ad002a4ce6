"""Keeps `dvc repro` out while `snakemake` runs: an entry for the results in DVC's own table of
files in use.

The Snakefile's lock refuses the second of two as well, but under `dvc repro` only when its stage's
Snakemake starts: after DVC has deleted what the stage made. `python -m workflow.dvc_lock release`:
take the entry back."""

import os
import sys
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.fs import localfs
from dvc.rwlock import (
    _check_blockers,
    _edit_rwlock,
)  # its context manager ends with the process that began it

from star.system.errors import StarError

TABLE = Path(".dvc/tmp")
OWNER = "snakemake"


def hold() -> None:
    """Enter the results folder for this process, which has the Snakefile's lock: older entries of
    Snakemake are dead.

    Raises:
        StarError: a DVC command is at work on them, or its table cannot be read.
    """
    if not TABLE.parent.is_dir():
        return
    TABLE.mkdir(exist_ok=True)
    release()
    results, entry = os.path.abspath("results"), {"pid": os.getpid(), "cmd": OWNER}
    try:
        with _edit_rwlock(str(TABLE), localfs, False) as table:
            for mode in ("write", "read"):
                _check_blockers(str(TABLE), table, entry, mode=mode, waiters=[results])
            table.setdefault("write", {})[results] = entry  # the checks drop what is empty
    except DvcException as error:
        raise StarError(
            f"DVC is at work in this folder; wait for it, or stop it first: {error}"
        ) from error


def release(process: int | None = None) -> None:
    """Take back the entry that a process made, or whichever made it.

    Raises:
        StarError: DVC's table cannot be read.
    """
    if not TABLE.is_dir():
        return
    try:
        with _edit_rwlock(str(TABLE), localfs, False) as table:
            entries = table["write"].items()
            ours = [
                path for path, e in entries if e["cmd"] == OWNER and process in (None, e["pid"])
            ]
            for path in ours:
                del table["write"][path]
    except DvcException as error:
        raise StarError(f"{TABLE / 'rwlock'}: {error}; delete it if no DVC command runs") from error


if __name__ == "__main__":
    if sys.argv[1:] != ["release"]:
        raise SystemExit(__doc__)
    release()
