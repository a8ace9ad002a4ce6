"""What the two pretrainings share: optimizers, learning rate, log."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from star.system.files import write_text_atomic


def split_optimizers(
    modules: torch.nn.Module,
    is_matrix: Callable[[str, torch.nn.Parameter], bool],
    learning_rate: float,
) -> tuple[torch.optim.Muon, torch.optim.AdamW]:
    """Muon for the trained parameters that ``is_matrix(name, parameter)`` chooses, AdamW for the
    other trained ones."""
    matrices: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in modules.named_parameters():
        if parameter.requires_grad:
            (matrices if is_matrix(name, parameter) else rest).append(parameter)
    return (
        torch.optim.Muon(
            matrices, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01),
    )


def rate_factor(step: int, steps: int, warmup: int, decay_share: float) -> float:
    """Learning rate at a step as a share of the peak: linear warm-up, constant, linear decay to
    zero at ``steps``."""
    return min(1.0, (step + 1) / warmup, (steps - step) / max(1.0, decay_share * steps))


def append_log(work: Path, line: dict) -> None:
    """Add a line to ``log.jsonl``; its keys ``part`` and ``step`` say where it belongs."""
    with open(work / "log.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def forget_log_after(work: Path, step: int, part: str) -> None:
    """Drop a part's lines of steps that the state does not hold: they are run again."""
    log = work / "log.jsonl"
    if log.exists():
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
        facts = map(json.loads, lines)
        kept = (
            line
            for line, fact in zip(lines, facts, strict=True)
            if fact["part"] != part or fact["step"] <= step
        )
        write_text_atomic(log, kept)
