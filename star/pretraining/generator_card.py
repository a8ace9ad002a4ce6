"""The base model's card: how it was made, what it scores, and a grid of 48 samples."""

import dataclasses
import json
import shutil
from pathlib import Path

import torch

from star.config.params import TASKS, Params
from star.evaluation.evaluate import evaluate
from star.miniature import world
from star.policy.rollout import sample_images
from star.policy.sd3 import load_policy
from star.pretraining.cards import render_card
from star.pretraining.config import GeneratorConfig
from star.pretraining.data import TAG_WEIGHTS
from star.prompts.prepare import prepare
from star.prompts.records import write_records
from star.system.files import write_text_atomic
from star.system.images import grid

GRID_COLUMNS = 12  # the first 36 GenEval test prompts, then 12 signs: the tags come in turn


def write_card(model: Path, work: Path, config: GeneratorConfig, params: Params) -> None:
    """Evaluate the model on the default test prompts; write README.md, samples.png and the log
    into its folder."""
    params = dataclasses.replace(params, model=dataclasses.replace(params.model, path=str(model)))
    tests = {task: prepare(task, params.prompts, params.seed)[1] for task in TASKS}
    card = work / "card"
    for task, records in tests.items():
        write_records(card / task / "test.jsonl", records)
    evaluate(params, "base", None, card, card / "state", card / "evaluate")
    scores = json.loads((card / "evaluate" / "scores.json").read_text())["benchmarks"]
    policy = load_policy(params.model, torch.device("cpu"))
    prompts = [record.prompt for record in (*tests["geneval"][:36], *tests["ocr"][:12])]
    images = sample_images(policy, prompts, range(len(prompts)), params.evaluate.steps)
    grid(images, columns=GRID_COLUMNS).save(model / "samples.png")
    shutil.copy(work / "log.jsonl", model / "training-log.jsonl")
    parts = ("vae", "text_encoder", "text_encoder_2", "text_encoder_3")
    modules = (policy.transformer, *(getattr(policy.pipe, part) for part in parts))
    parameters = sum(p.numel() for module in modules for p in module.parameters())
    text = card_text(model, config, params, scores, parameters)
    write_text_atomic(model / "README.md", text)


def card_text(
    model: Path, config: GeneratorConfig, params: Params, scores: dict, parameters: int
) -> str:
    """Return the card of a model that has its ``training-log.jsonl`` next to it.

    Args:
        scores: ``benchmarks`` of the evaluation's scores.json.
        parameters: how many the model has.
    """
    lines = map(json.loads, (model / "training-log.jsonl").read_text().splitlines())
    last = {line["part"]: line for line in lines}
    return render_card(
        "generator_card.j2",
        model=params.model,
        evaluate=params.evaluate,
        config=config,
        name=model.name,
        classes=world.CLASSES,
        unnamed=world.UNNAMED,
        mixture=TAG_WEIGHTS,
        parameters=parameters,
        **last,
        **scores,
    )
