"""Training states on disk: tensors as safetensors, the rest as JSON, and a checksum; no pickle.

A state file has its name only when it is whole and flushed to the disk. `States` keeps the newest
few of a training, so that a damaged one costs the epochs since the one before. Of a training that
is done it keeps the last.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from star.config.differences import described
from star.system.errors import StarError, writing
from star.system.files import remove, replace_durably
from star.system.locks import take_lock

Tensors = Mapping[str, torch.Tensor]


def save_state(path: Path, tensors: Tensors, facts: dict[str, Any]) -> None:
    """Write tensors and JSON-able facts to one file, so that they cannot disagree. Atomic.

    Raises:
        StarError: see `star.system.errors.writing`.
    """
    temporary = path.with_name(path.name + ".tmp")
    packed = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(facts, sort_keys=True)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(packed, temporary, metadata={"facts": text, "sha256": _digest(packed, text)})
        replace_durably(temporary, path)


def load_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return what `save_state` wrote.

    Raises:
        StarError: the file is truncated, altered or no such state.
    """
    with _opened(path) as (file, metadata):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        if metadata["sha256"] != _digest(tensors, metadata["facts"]):
            raise ValueError("its checksum does not fit")
        return tensors, json.loads(metadata["facts"])


def read_facts(path: Path) -> dict[str, Any]:
    """Return the facts of a state file without reading its tensors; they are not checked.

    Raises:
        StarError: the file is no state.
    """
    with _opened(path) as (_, metadata):
        return json.loads(metadata["facts"])


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file, file.metadata() or {}
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise StarError(f"{path}: not a readable training state ({error}); delete it") from error


def _digest(tensors: Tensors, facts: str) -> str:
    digest = hashlib.sha256(facts.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class States:
    """The states of one training in a folder of their own, named by epoch; the newest few stay.

    keep: how many. identity: what decides the training's result (nested, JSON-able). It is written
    into every state, and a state of another identity is refused.
    """

    folder: Path
    keep: int
    identity: dict[str, Any]

    def files(self) -> list[Path]:
        """Return the state files, oldest first."""
        found = self.folder.glob("state-*.safetensors")
        named = [file for file in found if re.fullmatch(r"state-\d{6,}\.safetensors", file.name)]
        return sorted(named, key=lambda file: int(file.stem.removeprefix("state-")))

    def save(self, epoch: int, tensors: Tensors, facts: dict[str, Any]) -> None:
        """Write the state after ``epoch`` epochs, then delete those that are too old."""
        path = self.folder / f"state-{epoch:06d}.safetensors"
        save_state(path, tensors, facts | {"identity": self.identity})
        for file in self.files()[: -self.keep]:
            file.unlink()

    @property
    def done(self) -> bool:
        """Return whether the training has ended and left its results."""
        return (self.folder / "done").exists()

    def finish(self) -> None:
        """Mark the training as done; its last state stays.

        A run that was killed before it knew this gets the same results when started again.
        """
        for file in self.files()[:-1]:
            file.unlink()
        (self.folder / "done").touch()

    def newest(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Return tensors and facts of the newest readable state, None where there is no state.

        Damaged ones are reported.

        Raises:
            StarError: none of several can be read, or it is of other parameters; names the keys.
        """
        files = self.files()
        for file in reversed(files):
            try:
                tensors, facts = load_state(file)
            except StarError as error:
                tqdm.write(f"warning: {error}; trying the state before it")
                continue
            if differing := described(facts.pop("identity"), self.identity):
                raise StarError(
                    f"{file}: a state of other parameters, {differing}; set them back, or delete "
                    f"{self.folder} to start over"
                )
            return tensors, facts
        if files:
            raise StarError(
                f"{self.folder}: none of its {len(files)} states can be read; delete the folder to "
                "start over"
            )
        return None


def remove_done(folder: Path) -> None:
    """Delete the trainings that are done and have the name of ``folder``, NAME-FINGERPRINT."""
    name = folder.name.rpartition("-")[0]
    for other in sorted(folder.parent.glob(f"{name}-*")):
        if other == folder or not States(other, 1, {}).done:
            continue
        try:
            lock = take_lock(other / ".lock", f"the deletion for {folder}")
        except StarError:  # it was started again
            continue
        remove(other)
        lock.release()


def copied(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Return copies on the CPU, in one transfer of each type.

    A state of SD3.5-M has 1,500 tensors, and each transfer would wait for the GPU.
    """
    copies: dict[str, torch.Tensor] = {}
    for kind in {(x.device, x.dtype) for x in tensors.values()}:
        group = {name: x for name, x in tensors.items() if (x.device, x.dtype) == kind}
        flat = torch.cat([x.detach().flatten() for x in group.values()]).cpu()
        parts = flat.split([x.numel() for x in group.values()])
        pairs = zip(group.items(), parts, strict=True)
        copies |= {name: part.view(x.shape) for (name, x), part in pairs}
    return copies


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, torch.Tensor]:
    """Return the optimizer's state of each parameter as a flat dict of tensors."""
    return {
        f"{prefix}{index}.{name}": torch.as_tensor(value)
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors, prefix: str) -> None:
    """Take back `optimizer_tensors`; the optimizer has the same parameters in the same order."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith(prefix):
            index, name = key.removeprefix(prefix).split(".", 1)
            state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
