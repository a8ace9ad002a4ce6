"""Where a report comes from: commit, parameters, package versions, machine."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

from star.config.params import Params, fingerprint

PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "numpy",
    "scipy",
    "pillow",
    "rapidocr-onnxruntime",
    "qtawesome",
    "snakemake",
    "dvc",
    "wandb",
)


def provenance(params: Params, params_path: Path) -> list[tuple[str, str]]:
    """Facts as (name, value) pairs, in the order in which they are shown."""
    digest = hashlib.sha256(params_path.read_bytes()).hexdigest()[:16]
    return [
        ("Git commit", git_commit(params_path.resolve().parent)),
        ("Parameter file", f"{params_path.name}, SHA-256 {digest}\u2026"),
        ("Parameter fingerprint", fingerprint(params)),
        ("Seed", str(params.seed)),
        ("Python", f"{platform.python_version()} ({platform.python_implementation()})"),
        (
            "Packages",
            ", ".join(f"{name} {version}" for name, version in package_versions().items()),
        ),
        ("System", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        ("Processor", f"{cpu_model()}, {os.cpu_count()} cores"),
        ("Memory", memory()),
    ]


def git_commit(folder: Path) -> str:
    """The commit checked out at a folder, and whether tracked files differ from it."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return "not a git checkout"
    return f"{commit}{' with uncommitted changes' if changed else ''}"


def package_versions() -> dict[str, str]:
    """Versions of those of `PACKAGES` that are installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def cpu_model() -> str:
    """Name of the processor, as Linux gives it; elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def memory() -> str:
    """Physical memory in GiB."""
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (OSError, ValueError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=10
    ).stdout.strip()
