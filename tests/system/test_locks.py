"""A lock excludes all others, names its owner and ends with its process."""

import errno
import fcntl
import gc
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from star.system.errors import StarError
from star.system.locks import take_lock


def test_one_owner_at_a_time_and_none_after_a_kill(tmp_path: Path) -> None:
    lock = tmp_path / "folder" / "lock"
    program = (
        "import gc, sys; from pathlib import Path; from star.system.locks import take_lock\n"
        f"take_lock(Path({str(lock)!r}), 'star train')\n"
        "gc.collect(); print('taken', flush=True); sys.stdin.read()"
    )
    command, pipe = [sys.executable, "-c", program], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as owner:
        assert owner.stdout is not None and owner.stdout.readline() == "taken\n"
        named = rf"^{lock}: star train \(process {owner.pid} on {platform.node()}\)"
        with pytest.raises(StarError, match=named):
            take_lock(lock, "another")
        owner.kill()
        owner.wait()
    take_lock(lock, "another").release()


def test_a_lock_ends_with_its_block_or_its_release_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with take_lock(path, "first"), pytest.raises(StarError, match="first"):
        take_lock(path, "second")
    third = take_lock(path, "third")
    third.release()
    take_lock(path, "fourth")
    gc.collect()
    with pytest.raises(StarError, match="fourth"):
        take_lock(path, "fifth")


def test_a_lock_on_a_file_that_its_owner_removed_meanwhile_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking, the owner ends and removes the file."""
    path, flock = tmp_path / "lock", fcntl.flock
    calls = []

    def late(descriptor: int, how: int) -> None:
        calls.append(how)
        if len(calls) == 1:
            path.unlink()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with take_lock(path, "second"):
        assert len(calls) == 2 and path.exists()
        with pytest.raises(StarError, match="second"):
            take_lock(path, "third")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_not_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_locks(descriptor: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    path = tmp_path / "lock"
    with pytest.raises(StarError, match=rf"^{path}: .*\({os.strerror(number)}\)"):
        take_lock(path, "me")
