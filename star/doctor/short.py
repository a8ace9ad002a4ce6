"""`star doctor`: what this machine can do, one line each: ok, or what to mend. Opens no model.

The code that a run uses says what is wrong. What could hang is waited for a few seconds at most.
"""

import os
import platform
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from star.config.params import Params
from star.doctor.findings import Finding
from star.plan.configs import pipeline_configs
from star.system.errors import StarError, cut
from star.system.files import check_writable
from star.system.gpus import visible_gpus, why_unusable
from star.system.runtime import quick_imports

PACKAGES = ("torch", "diffusers", "transformers", "peft", "snakemake", "dvc")
WAIT = 3.0  # seconds for an answer
GIB = 2**30
MEMORY, DISK = 4, 2  # GiB that a training of the miniature and its results take


def examine(params: Params) -> Iterator[Finding]:
    """Look at what the parameters need, and at what else a run may use."""
    packages = _packages()
    yield packages
    if packages.mend:  # the rest would not be imported
        return
    yield from _device(params)
    model, taste, geneval = params.model, params.rewards.preference, params.rewards.geneval
    named = [
        (model.path, model.revision, "model.path"),
        (taste.path, taste.revision, "rewards.preference.path"),
    ]
    if geneval.path and geneval.color_path:
        named.append((geneval.path, geneval.revision, "rewards.geneval.path"))
        named.append((geneval.color_path, geneval.color_revision, "rewards.geneval.color_path"))
    yield from _places(model.prompt_cache, any(not Path(path).exists() for path, *_ in named))
    yield from _models(named)
    yield _tracker(params.train.tracker)
    accounted, said = _output("sacct", "--noheader", "--allocations")
    accounting = "on" if accounted else f"off ({said})"
    yield Finding("slurm", f"accounting {accounting}" if shutil.which("sbatch") else "none here")
    shared, remote = _output("dvc", "remote", "default")
    if not Path(".dvc").is_dir():
        yield Finding("dvc", "no repository here", "start `star` in the checkout", False)
    else:
        yield Finding("dvc", f"default remote {remote}" if shared else remote)


def _packages() -> Finding:
    """Compare what is installed with what star asks for."""
    found, wrong = {"python": platform.python_version()}, []
    for asked in map(Requirement, requires("star") or ()):
        if asked.marker is None or asked.marker.evaluate({"extra": ""}):
            try:
                found[asked.name] = version(asked.name)
            except PackageNotFoundError:
                found[asked.name] = "0"
            if not asked.specifier.contains(found[asked.name], prereleases=True):
                wrong.append(f"{asked.name}{asked.specifier}")
    shown = ", ".join(f"{name} {found[name]}" for name in ("python", *PACKAGES))
    return Finding("versions", shown, f"`make install`: {' '.join(wrong)}" if wrong else "")


def _device(params: Params) -> Iterator[Finding]:
    with quick_imports():
        import torch

        from star.method.attention import choose_kernel
        from star.method.precision import AUTOCAST_DTYPES, resolve_precision

    model, reason = params.model, cut(why_unusable() or "", 200)
    device = torch.device("cpu" if reason else "cuda")
    if not reason:
        _, driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        free, total = (size // GIB for size in torch.cuda.mem_get_info())
        name = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
        made = torch.version.cuda or f"ROCm {torch.version.hip}"
        value = f"cuda: {name}, {free} of {total} GiB free, driver {driver}, torch for {made}"
        yield Finding("device", value)
    elif visible_gpus():
        mend = "update the driver or install another torch; for the CPU set CUDA_VISIBLE_DEVICES="
        yield Finding("device", f"a GPU that torch cannot use ({reason})", mend)
    else:
        yield Finding("device", f"cpu (torch: {reason})")
    precision = resolve_precision(model.precision, device)
    slow = precision == "bf16" != resolve_precision("auto", device)
    mend = "emulated here, and slow: set model.precision: auto" if slow else ""
    value = "float32" if precision == "no" else precision
    yield Finding("precision", f"{value} (model.precision: {model.precision})", mend, needed=False)
    try:
        configs = pipeline_configs(model.path)
    except StarError as error:
        yield Finding("attention", model.path, str(error))
        return
    if configs is None:
        yield Finding("attention", f"the kernel is chosen when {model.path} is here")
        return
    vae, transformer = configs["vae"], configs["transformer"]
    side = 2 ** (len(vae["block_out_channels"]) - 1) * transformer["patch_size"]  # pixels
    text = configs["tokenizer"]["model_max_length"] + model.t5_tokens
    tokens = (model.resolution // side) ** 2 + text
    dtype = AUTOCAST_DTYPES.get(precision, torch.float32)
    heads = transformer["num_attention_heads"], transformer["attention_head_dim"]
    kernel, _ = choose_kernel(device, dtype, tokens, *heads)
    yield Finding("attention", f"kernel {kernel} for {tokens} tokens")


def _places(prompt_cache: str | None, fetching: bool) -> Iterator[Finding]:
    from huggingface_hub import constants

    cores = len(getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0))
    memory = psutil.virtual_memory()
    free, total = memory.available / GIB, memory.total / GIB
    value = f"{cores} cores, {free:.1f} of {total:.1f} GiB memory free"
    low = f"a training of the miniature takes {MEMORY}" if free < MEMORY else ""
    yield Finding("machine", value, low, needed=False)
    cache = constants.HF_HUB_CACHE
    folders = {"results": "results", "states": ".star", "hub cache": cache, "prompts": prompt_cache}
    for name, folder in folders.items():
        if folder is None:
            continue
        needed = fetching or name != "hub cache"
        try:
            check_writable(Path(folder), name)
        except StarError as error:
            yield Finding(name, folder, str(error).removeprefix(f"{name} {folder}: "), needed)
            continue
        lineage = (Path(folder).absolute(), *Path(folder).absolute().parents)
        free = shutil.disk_usage(next(path for path in lineage if path.exists())).free / GIB
        yield Finding(name, f"{folder}, {free:.0f} GiB free", "make room" * (free < DISK), needed)


def _models(named: list[tuple[str, str | None, str]]) -> Iterator[Finding]:
    from huggingface_hub import constants, get_token

    from star.system.hub import model_trouble

    login = "logged in" if get_token() else "not logged in (`hf auth login`)"
    xet = ", files without Xet (HF_HUB_DISABLE_XET=1)" if constants.HF_HUB_DISABLE_XET else ""
    yield Finding("hub", f"{constants.ENDPOINT}, {login}{xet}")
    answers = {path: f"{constants.ENDPOINT} does not answer; see HF_ENDPOINT" for path, *_ in named}

    def ask(path: str, revision: str | None, key: str) -> None:
        trouble = model_trouble(path, revision, key) or ""
        answers[path] = trouble.removeprefix(f"{key} {path!r}: ").replace(path, "<id>")

    # Threads that nobody waits for: a name server may hang for longer than the library's timeout.
    threads = [threading.Thread(target=ask, args=model, daemon=True) for model in named]
    for thread in threads:
        thread.start()
    end = time.monotonic() + WAIT
    for thread in threads:
        thread.join(max(0, end - time.monotonic()))
    for answer in dict.fromkeys(answers.values()):
        paths = [path for path in answers if answers[path] == answer]
        trouble = answer.replace("<id>", paths[0]) if len(paths) == 1 else answer
        yield Finding("models", ", ".join(paths) + ("" if answer else ": can be had"), trouble)


def _tracker(kind: str) -> Finding:
    from star.training.tracking import check_tracker

    os.environ.setdefault("WANDB_HTTP_TIMEOUT", str(int(WAIT)))
    value = f"wandb, WANDB_MODE={os.environ['WANDB_MODE']}" if kind == "wandb" else kind
    try:
        check_tracker(kind)
    except StarError as error:
        return Finding("tracker", value, str(error))
    if kind == "wandb":
        import wandb

        wandb.setup(settings=wandb.Settings(mode="online"))  # offline it would look for no key
        key = wandb.login(prompt=False, verify=False)
        value += ", a key is there" if key else ", no key (`wandb login`, before `wandb sync`)"
    return Finding("tracker", value)


def _output(*command: str) -> tuple[bool, str]:
    """Return whether a program succeeds, and its last line."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT)
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, cut(str(error))
    lines = (done.stdout + done.stderr).split("\n")
    return done.returncode == 0, cut(next(filter(None, reversed(lines)), ""))
