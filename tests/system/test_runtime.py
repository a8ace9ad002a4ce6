"""Settings of the whole process, so each test has a process of its own."""

import subprocess
import sys


def test_imports_wait_for_no_collection_and_later_ones_pass_over_them() -> None:
    program = """
import gc
from star.system.runtime import quick_imports

found, kept = [], []
for fails in (False, True):
    try:
        with quick_imports():
            assert not gc.isenabled()
            kept += [[] for _ in range(1000)]
            assert not fails
    except AssertionError:
        assert fails
    assert gc.isenabled()
    found.append(gc.get_freeze_count())
first, second = found
assert first > 1000 and second <= first, found
"""
    subprocess.run([sys.executable, "-c", program], check=True)
