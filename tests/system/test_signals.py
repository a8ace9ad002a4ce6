"""A process that is asked to stop, and asked again."""

import signal
import subprocess
import sys
import time

import pytest

from star.system.signals import SAME

PROGRAM = """
import time
from star.system.signals import listening
with listening() as asked:
    print("ready", flush=True)
    while not asked():
        time.sleep(0.01)
    print("asked", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGUSR1])
def test_the_second_sigterm_ends_the_process_at_once(first):
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(first)
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGTERM)  # a launcher's, which hands the scheduler's on
        time.sleep(SAME + 0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM


FAILING = """
import os, signal
from star.system.signals import listening
try:
    with listening():
        raise RuntimeError("the detector is gone")
finally:
    os.kill(os.getpid(), signal.SIGTERM)  # a launcher's, whose other process has ended
"""


def test_an_error_is_told_though_sigterm_follows_it():
    run = subprocess.run([sys.executable, "-c", FAILING], capture_output=True, text=True)
    assert run.returncode == 1 and "the detector is gone" in run.stderr
