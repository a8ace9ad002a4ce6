"""Where a page comes from: commit, parameters, package versions, machine."""

import hashlib
import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from star.config.params import Params, fingerprint

PACKAGES = (
    *("torch", "diffusers", "transformers", "accelerate", "peft", "numpy", "scipy", "pillow"),
    *("rapidocr-onnxruntime", "qtawesome", "snakemake", "dvc", "wandb"),
)


def provenance(params: Params, params_path: Path) -> list[tuple[str, str]]:
    """Return facts as (name, value) pairs, in the order in which they are shown."""
    digest = hashlib.sha256(params_path.read_bytes()).hexdigest()[:16]
    return [
        ("Git commit", git_commit(params_path.resolve().parent)),
        ("Parameter file", f"{params_path.name}, SHA-256 {digest}\u2026"),
        ("Parameter fingerprint", fingerprint(params)),
        ("Seed", str(params.seed)),
        ("Python", f"{platform.python_version()} ({platform.python_implementation()})"),
        ("Packages", package_versions()),
        ("System", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        ("Processor", f"{cpu_model()}, {os.cpu_count()} cores"),
        ("Memory", f"{psutil.virtual_memory().total / 2**30:.1f} GiB"),
    ]


def git_commit(folder: Path) -> str:
    """Return the commit checked out at a folder, and whether tracked files differ from it."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return "not a git checkout"
    return f"{commit}{' with uncommitted changes' if changed else ''}"


def package_versions() -> str:
    """Return names and versions of those of `PACKAGES` that are installed, in one line."""
    found = []
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join(found)


def cpu_model() -> str:
    """Return the processor's name as Linux gives it; elsewhere what Python knows."""
    lines: list[str] = []
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=10)
    return done.stdout.strip()
