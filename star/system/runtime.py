"""Settings of the whole process, which the command line makes once."""

import ctypes
import gc
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

# Parameters of glibc's mallopt (malloc.h) and their values.
_MALLOC_SETTINGS = {
    -4: 0,  # M_MMAP_MAX: no block is mapped by itself
    -1: 2**31 - 1,  # M_TRIM_THRESHOLD: never
    -2: 64 * 2**20,  # M_TOP_PAD: bytes
    -8: 1,  # M_ARENA_MAX
}
HUB = "https://huggingface.co"
_QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
}


def escape_output() -> None:
    """Write characters that the output's encoding lacks as escapes; by default they are errors."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def keep_freed_memory() -> None:
    """Tell glibc, where there is one, to keep large freed blocks.

    On virtual machines, asking the kernel for every large tensor anew makes a training step on the
    CPU four times slower."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for name, value in _MALLOC_SETTINGS.items():
            mallopt(name, value)


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import large libraries without Python's cycle collector.

    It would visit all that they make again and again and find nothing: a quarter of the time that
    torch and diffusers take. What the first imports made is left out of all later collections."""
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():
            gc.freeze()
        gc.enable()


def stay_offline() -> None:
    """Switch off telemetry, online tracking and chatter, unless the environment asks for them.

    To be called before the libraries load. Models that are directories then need no network; only
    `star.system.hub` asks for hub ids, unless HF_HUB_OFFLINE is set. From a mirror files come by
    HTTP: it passes the hub's headers on, by which Xet would ask its own servers, and hang where
    they cannot be reached."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if urlsplit(os.environ.get("HF_ENDPOINT", HUB)).hostname != urlsplit(HUB).hostname:
        os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    if not sys.stderr.isatty():  # bars are for terminals
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
