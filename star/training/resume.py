"""What decides a training's result, and the folder of its states that follows from it.

Changed parameters, prompts, models or code, another kind of device or precision make another
training, in another folder: no state is ever continued with them. An unfinished training of the
same name is mentioned, with what differs, and left alone."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from star.config.differences import described
from star.config.params import AllocationParams, ModelParams, Params, fingerprint
from star.method.precision import resolve_precision
from star.system.errors import StarError
from star.training.checkpoint import States, read_facts

_PIECE, _PIECES = 4096, 1024  # bytes, and how many of a large file


def training_identity(
    params: Params, task: str, method: str, allocation: AllocationParams, prompts: Path, **more: Any
) -> dict[str, Any]:
    """Parameters, prompts, files of local models, the package's code and what computes, as nested
    JSON values.

    Args:
        prompts: file of the training records.
        more: whatever else decides the result.
    """
    values = parameter_sections(params, task, allocation)
    values |= {"task": task, "method": method, "code": code_digest(), **more}
    models = {
        key: Path(path)
        for key, path in params.paths()
        if key.startswith(("model.path", f"rewards.{task}."))
    }
    values["files"] = {key: folder_digest(path) for key, path in models.items() if path.is_dir()}
    values["computing"] = computing(params.model)
    values["prompts"] = hashlib.sha256(prompts.read_bytes()).hexdigest()
    return json.loads(json.dumps(values))  # as it will be read back


def parameter_sections(params: Params, task: str, allocation: AllocationParams) -> dict[str, Any]:
    """The parameters that decide a training's result, as nested JSON values."""
    sections = {name: getattr(params, name) for name in ("model", "core", "rollout", "train")}
    sections |= {"allocation": allocation, "reward": getattr(params.rewards, task)}
    values: dict[str, Any] = {
        name: dataclasses.asdict(section) for name, section in sections.items()
    }
    return json.loads(json.dumps(values | {"seed": params.seed}))


def code_digest() -> str:
    """Changes with any file of the package."""
    code = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        code.update(file.read_bytes())
    return code.hexdigest()


def computing(model: ModelParams) -> dict[str, str]:
    """The kind of device, and what `model.precision` stands for on it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {"device": device.type, "precision": resolve_precision(model.precision, device)}


def folder_digest(folder: Path) -> str:
    """Changes with the descriptions and weights of a model's directory, wherever it lies.

    Of a file above 4 MiB only its size and 1,024 pieces of 4 KiB count: training changes every
    weight, and reading gigabytes would delay each start."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.suffix not in (".safetensors", ".json", ".txt", ".model") or not file.is_file():
            continue
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder)} {size} ".encode())
        with open(file, "rb") as opened:
            for start in range(0, size, max(_PIECE, size // _PIECES)):
                opened.seek(start)
                digest.update(opened.read(_PIECE))
    return digest.hexdigest()


def state_folder(base: Path, identity: dict[str, Any]) -> Path:
    """Below ``base``, the folder of this training alone."""
    name = f"{identity['task']}-{identity['method']}"
    folder = base / f"{name}-{fingerprint(identity)}"
    for other in sorted(base.glob(f"{name}-*")) if not folder.exists() else ():
        states = States(other, 1, {})
        files = states.files()
        if states.done or not files:
            continue
        try:
            facts = read_facts(files[-1])
        except StarError:
            continue  # whoever continues it is told
        differing = described(facts["identity"], identity)
        tqdm.write(
            f"note: {other}: an unfinished training (epoch {facts['epoch']}) is left alone: {differing}"
        )
    return folder
