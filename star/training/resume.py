"""Decides which states belong to a training: parameters, prompts, models and code must be the same.

So must the kind of device and the precision. Others make another training, in another folder. An
unfinished training of the same name is mentioned, with what differs, and left alone.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from star.config.differences import described
from star.config.params import Params, fingerprint
from star.method.precision import computing
from star.system.digests import code_digest, folder_digest
from star.system.errors import StarError
from star.training.checkpoint import States, read_facts


def training_identity(
    params: Params,
    task: str,
    method: str,
    prompts: Path,
    judges: Sequence[str] = (),
    **more: Any,
) -> dict[str, Any]:
    """Return all that decides a training's result, as nested JSON values.

    Args:
        params: with the method's own values.
        prompts: file of the training records.
        judges: more tasks whose reward models judge.
        more: whatever else decides the result.
    """
    keys = ("model.path", "train.init_adapter", *(f"rewards.{judge}." for judge in {task, *judges}))
    models = {key: Path(path) for key, path in params.paths() if key.startswith(keys)}
    values = {
        **parameter_sections(params, task),
        "task": task,
        "method": method,
        "code": code_digest(),
        **more,
        "files": {key: folder_digest(path) for key, path in models.items() if path.is_dir()},
        "computing": computing(params.model.precision),
        "prompts": hashlib.sha256(prompts.read_bytes()).hexdigest(),
    }
    return json.loads(json.dumps(values))  # as it will be read back


def held_out_identity(params: Params, prompts: Path) -> dict[str, Any]:
    """Return what decides a training's held-out scores besides; nothing if it has none."""
    if not params.train.evaluate_every:
        return {}
    return {"held_out": hashlib.sha256(prompts.read_bytes()).hexdigest()}


def parameter_sections(params: Params, task: str) -> dict[str, Any]:
    """Return the parameters that decide a training's result, as nested JSON values."""
    names = ("model", "core", "rollout", "allocation", "train", "forward")
    sections = {name: getattr(params, name) for name in names}
    sections["reward"] = getattr(params.rewards, task)
    values = {name: dataclasses.asdict(section) for name, section in sections.items()}
    return json.loads(json.dumps({**values, "seed": params.seed}))


def state_folder(base: Path, name: str, identity: dict[str, Any]) -> Path:
    """Return the folder of this training alone, NAME-FINGERPRINT below ``base``.

    Args:
        name: of the training; those of one name and another identity are earlier versions of it.
    """
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
        tqdm.write(
            f"note: {other}: an unfinished training (epoch {facts['epoch']}) is left alone: "
            + described(facts["identity"], identity)
        )
    return folder
