"""Keeps what the transformer reads of prompts, so that each is encoded once.

At SD3.5-M's size a prompt takes 1.7 MB, and its largest encoder 9.5 GB. With a folder every prompt
is encoded before the training starts, and the encoders leave the device.
"""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from star.system.errors import StarError
from star.system.progress import Progress

KEPT = 512  # prompts in memory in addition to a folder


@dataclass(frozen=True)
class Conditioning:
    """A batch of encoded prompts: embeds (batch, tokens, width), pooled (batch, width)."""

    embeds: Tensor
    pooled: Tensor

    def __getitem__(self, rows: slice | Tensor) -> "Conditioning":
        return Conditioning(self.embeds[rows], self.pooled[rows])


class PromptStore:
    """Conditioning by prompt: in memory, or in a folder and the last ones in memory.

    What a prompt becomes does not depend on when or with which others it is asked for, so a resumed
    training sees the same. The encoders always get ``batch`` prompts, filled up with
    empty ones, because the shape of a matrix product decides its last bits.

    Args:
        encode: a batch of prompts to their conditioning.
        folder: of one model's prompts; None keeps all in memory.
        batch: prompts that ``encode`` takes.
    """

    def __init__(
        self,
        encode: Callable[[list[str]], Conditioning],
        folder: Path | None,
        device: torch.device,
        batch: int,
    ) -> None:
        self._encode, self.folder, self._device, self._batch = encode, folder, device, batch
        self._kept: OrderedDict[str, Conditioning] = OrderedDict()

    def get(self, prompts: Sequence[str]) -> Conditioning:
        """Return the conditioning of prompts; encode those that are nowhere yet.

        Raises:
            StarError: a file of the folder that cannot be read.
        """
        self.load(prompts)
        known = [self._kept[prompt] for prompt in prompts]
        while self.folder is not None and len(self._kept) > max(KEPT, len(prompts)):
            self._kept.popitem(last=False)
        embeds = torch.stack([one.embeds for one in known])
        return Conditioning(embeds, torch.stack([one.pooled for one in known]))

    def load(self, prompts: Sequence[str]) -> None:
        """Bring prompts to memory, those of the folder in two copies; raises as `get`."""
        wanted = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._kept]
        read = {prompt: self._read(prompt) for prompt in wanted if self._stored(prompt)}
        if read:
            embeds = torch.stack([one.embeds for one in read.values()]).to(self._device)
            pooled = torch.stack([one.pooled for one in read.values()]).to(self._device)
            for prompt, *row in zip(read, embeds, pooled, strict=True):
                self._kept[prompt] = Conditioning(*(tensor.clone() for tensor in row))
        new = [prompt for prompt in wanted if prompt not in read]
        for start in range(0, len(new), self._batch):
            self._add(new[start : start + self._batch])

    def fill(self, prompts: Sequence[str]) -> None:
        """Encode to the folder what is not there yet."""
        new = [prompt for prompt in dict.fromkeys(prompts) if not self._stored(prompt)]
        starts = range(0, len(new), self._batch)
        for start in Progress(starts, desc="prompts", unit="batch", disable=not new):
            self._add(new[start : start + self._batch])
            self._kept.clear()

    def keep(self, prompt: str, value: Conditioning) -> None:
        """Store a prompt's conditioning, which is without a batch dimension."""
        self._kept[prompt] = value
        if self.folder is not None:
            self._write(prompt, value)

    def _add(self, prompts: list[str]) -> None:
        encoded = self._encode(prompts + [""] * (self._batch - len(prompts)))
        for row, prompt in enumerate(prompts):
            self.keep(prompt, Conditioning(encoded.embeds[row], encoded.pooled[row]))

    def _file(self, prompt: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{hashlib.sha256(prompt.encode()).hexdigest()[:32]}.safetensors"

    def _write(self, prompt: str, value: Conditioning) -> None:
        path = self._file(prompt)
        # A name of this process's own: others may write the same prompt.
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        tensors = {"embeds": value.embeds.contiguous(), "pooled": value.pooled.contiguous()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, temporary)
            os.replace(temporary, path)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StarError(
                f"model.prompt_cache: {path.parent} cannot be written ({reason})"
            ) from error

    def _stored(self, prompt: str) -> bool:
        return self.folder is not None and self._file(prompt).exists()

    def _read(self, prompt: str) -> Conditioning:
        """Read a prompt from the folder, to the CPU."""
        file = self._file(prompt)
        try:
            tensors = load_file(file)
            return Conditioning(tensors["embeds"], tensors["pooled"])
        except (SafetensorError, KeyError, OSError) as error:
            raise StarError(
                f"{file}: not a readable prompt embedding ({error}); delete it"
            ) from error
