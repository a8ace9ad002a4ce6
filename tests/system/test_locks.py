"""A lock ends with its process."""

import errno
import fcntl
import os
import platform
import subprocess
import sys

import pytest

from star.system.errors import StarError
from star.system.locks import take_lock


def test_one_owner_at_a_time_and_none_after_a_kill(tmp_path):
    lock = tmp_path / "folder" / "lock"
    program = (
        "import sys; from pathlib import Path; from star.system.locks import take_lock\n"
        f"take_lock(Path({str(lock)!r}), 'star train'); print('taken', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "taken\n"
        with pytest.raises(
            StarError, match=rf"star train \(process {owner.pid} on {platform.node()}\) is at work"
        ):
            take_lock(lock, "another")
        owner.kill()
        owner.wait()
    os.close(take_lock(lock, "another"))


def test_a_lock_on_a_file_that_its_owner_removed_meanwhile_is_none(tmp_path, monkeypatch):
    """Between opening and locking, the owner ends and removes the file: locking what is left of it
    excludes nobody."""
    path, flock = tmp_path / "lock", fcntl.flock
    calls = []

    def late(descriptor, how):
        calls.append(how)
        if len(calls) == 1:
            path.unlink()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    held = take_lock(path, "second")
    assert len(calls) == 2 and os.path.samestat(os.fstat(held), path.stat())
    with pytest.raises(StarError, match="second .* is at work"):
        take_lock(path, "third")
    os.close(held)


def test_a_file_system_without_locks_is_not_another_process(tmp_path, monkeypatch):
    def no_locks(descriptor, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(
        StarError, match=r"lock: this file system cannot lock \(No locks available\)"
    ):
        take_lock(tmp_path / "lock", "me")
