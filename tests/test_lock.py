"""A lock ends with its process."""

import os
import platform
import subprocess
import sys

import pytest

from star.errors import StarError
from star.lock import take_lock


def test_one_owner_at_a_time_and_none_after_a_kill(tmp_path):
    lock = tmp_path / "folder" / "lock"
    program = (
        "import sys; from pathlib import Path; from star.lock import take_lock\n"
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
        with pytest.raises(StarError, match=rf"star train \(process {owner.pid} on {platform.node()}\) is at work"):
            take_lock(lock, "another")
        owner.kill()
        owner.wait()
    os.close(take_lock(lock, "another"))
