"""What decides a training's result, and the folder of its states that follows from it.

Changed parameters, prompts or code make another training, in another folder: no state is ever continued with them. An
unfinished training of the same name is mentioned, with what differs, and left alone.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

from star.checkpoint import States, read_facts
from star.differences import described
from star.errors import StarError
from star.params import AllocationParams, Params, fingerprint


def training_identity(
    params: Params, task: str, method: str, allocation: AllocationParams, prompts: Path, **more: Any
) -> dict[str, Any]:
    """Parameters, prompts and the package's code, as nested JSON values.

    Args:
        prompts: file of the training records.
        more: whatever else decides the result.
    """
    values = parameter_sections(params, task, allocation)
    values |= {"task": task, "method": method, "code": code_digest(), **more}
    values["prompts"] = hashlib.sha256(prompts.read_bytes()).hexdigest()
    return json.loads(json.dumps(values))  # as it will be read back


def parameter_sections(params: Params, task: str, allocation: AllocationParams) -> dict[str, Any]:
    """The parameters that decide a training's result, as nested JSON values."""
    sections = {name: getattr(params, name) for name in ("model", "core", "rollout", "train")}
    sections |= {"allocation": allocation, "reward": getattr(params.rewards, task)}
    values: dict[str, Any] = {name: dataclasses.asdict(section) for name, section in sections.items()}
    return json.loads(json.dumps(values | {"seed": params.seed}))


def code_digest() -> str:
    """Changes with any file of the package."""
    code = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        code.update(file.read_bytes())
    return code.hexdigest()


def state_folder(base: Path, identity: dict[str, Any]) -> Path:
    """Below ``base``, the folder of this training alone."""
    name = f"{identity['task']}-{identity['method']}"
    folder = base / f"{name}-{fingerprint(identity)}"
    for other in sorted(base.glob(f"{name}-*")) if not folder.exists() else ():
        files = States(other, 1, {}).files()
        if not files:
            continue
        try:
            facts = read_facts(files[-1])
        except StarError:
            continue  # whoever continues it is told
        differing = described(facts["identity"], identity)
        tqdm.write(f"note: {other}: an unfinished training (epoch {facts['epoch']}) is left alone: {differing}")
    return folder
