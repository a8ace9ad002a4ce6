"""Process-wide settings that belong to the program, not to the library: made once by the command
line."""

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# glibc's mallopt parameters (malloc.h).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_NEVER_TRIM = 2**31 - 1
_TOP_PAD_BYTES = 64 * 2**20


def keep_freed_memory() -> bool:
    """Tell glibc to keep large freed blocks instead of returning them to the kernel.

    Faulting every large tensor in again costs a CPU training step a factor of four on virtual
    machines. Returns whether the allocator took the settings (False anywhere but on glibc)."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = (
        (_M_MMAP_MAX, 0),
        (_M_TRIM_THRESHOLD, _NEVER_TRIM),
        (_M_TOP_PAD, _TOP_PAD_BYTES),
        (_M_ARENA_MAX, 1),
    )
    return all(mallopt(name, value) == 1 for name, value in settings)


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import large libraries inside without Python's cycle collector, which would visit all that
    they make again and again and find nothing: a quarter of the time that torch and diffusers take.

    The first time, what there is then is left out of all later collections, the one when Python
    ends among them."""
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():
            gc.freeze()
        gc.enable()


def stay_offline() -> None:
    """Switch off telemetry, online tracking and chatter unless asked for; runs before the libraries
    load.

    Models that are directories need no network then, and nothing is sent; the hub is asked for hub
    ids alone, by `star.system.hub`, unless HF_HUB_OFFLINE is set."""
    for name, value in {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DISABLE_TELEMETRY": "1",
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
        "HF_HUB_VERBOSITY": "error",
    }.items():
        os.environ.setdefault(name, value)
    if not sys.stderr.isatty():  # bars are for terminals
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
