"""The loop that both pretrainings run: step, log, save, and go on where a stopped run ended."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from star.method.ema import Average
from star.pretraining.config import GeneratorConfig, PreferenceConfig
from star.pretraining.muon import Muon
from star.system.files import write_text_atomic
from star.system.progress import Progress
from star.training.checkpoint import load_state, optimizer_tensors, restore_optimizer, save_state


def train(
    part: str,
    modules: torch.nn.ModuleDict,
    is_matrix: Callable[[str, torch.nn.Parameter], bool],
    losses_of: Callable[[int], dict[str, Tensor]],
    work: Path,
    config: GeneratorConfig | PreferenceConfig,
    average: Average | None = None,
    digits: int | None = None,
) -> None:
    """Train modules up to step ``config.stop``, on from the state in ``work`` if there is one.

    Args:
        part: name of the state's file and of the part in the log.
        is_matrix: which parameters Muon gets; AdamW gets the others that are trained.
        losses_of: terms of a step's loss, whose sum is minimised.
        average: of the modules' parameters, updated after each step.
        digits: to which the log's losses are rounded.
    """
    muon, adamw = _split_optimizers(modules, is_matrix, config.learning_rate)
    trained = dict(modules.named_parameters())
    weights: dict[str, Tensor] = {f"model.{name}": value for name, value in trained.items()}
    if average:
        averages = zip(trained, average.values, strict=True)
        weights |= {f"ema.{name}": value for name, value in averages}
    state = work / f"{part}.safetensors"
    first = 0
    if state.exists():
        tensors, facts = load_state(state)
        with torch.no_grad():
            for name, value in weights.items():
                value.copy_(tensors[name])
        restore_optimizer(muon, tensors, "muon.")
        restore_optimizer(adamw, tensors, "adamw.")
        first = facts["step"]
        _forget_log_after(work, first, part)
    steps = range(first, config.stop)
    bar = Progress(steps, initial=first, total=config.stop, desc=part, unit="batch", mininterval=5)
    started, history = time.time(), []
    for step in bar:
        losses = losses_of(step)
        rate = config.learning_rate * _rate_factor(step, config)
        for optimizer in (muon, adamw):
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = rate
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        muon.step()
        adamw.step()
        if average:
            average.update(modules.parameters(), step)
        history.append([loss.item() for loss in losses.values()])
        done, last = step + 1, step + 1 == config.stop
        if done % config.log_every == 0 or last:
            columns = zip(losses, map(np.mean, zip(*history, strict=True)), strict=True)
            means = {n: float(m if digits is None else m.round(digits)) for n, m in columns}
            speed = config.batch * (done - first) / (time.time() - started)
            line = {"part": part, "step": done, **means, "images": config.batch * done}
            append_log(work, line | {"images_per_s": round(speed, 1)})
            bar.set_postfix({name: f"{mean:.4f}" for name, mean in means.items()})
            history = []
        if done % config.save_every == 0 or last:
            moments = optimizer_tensors(muon, "muon.") | optimizer_tensors(adamw, "adamw.")
            save_state(state, weights | moments, {"step": done})


def append_log(work: Path, line: dict) -> None:
    """Add a line to ``log.jsonl``; its keys ``part`` and ``step`` say where it belongs."""
    with open(work / "log.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _split_optimizers(
    modules: torch.nn.Module,
    is_matrix: Callable[[str, torch.nn.Parameter], bool],
    rate: float,
) -> tuple[Muon, torch.optim.AdamW]:
    matrices: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in modules.named_parameters():
        if parameter.requires_grad:
            (matrices if is_matrix(name, parameter) else rest).append(parameter)
    return (
        Muon(matrices, lr=rate, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.01),
    )


def _rate_factor(step: int, config: GeneratorConfig | PreferenceConfig) -> float:
    """Return the learning rate as a share of the peak: linear warm-up, constant, linear decay to
    zero."""
    decay = (config.steps - step) / max(1.0, config.decay_share * config.steps)
    return min(1.0, (step + 1) / config.warmup, decay)


def _forget_log_after(work: Path, step: int, part: str) -> None:
    """Drop a part's lines of steps that the state does not hold: they are run again."""
    log = work / "log.jsonl"
    if log.exists():
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
        facts = map(json.loads, lines)
        kept = [fact["part"] != part or fact["step"] <= step for fact in facts]
        write_text_atomic(log, (line for line, keep in zip(lines, kept, strict=True) if keep))
