"""The base model's card: how it was made, what it scores, and a grid of 48 samples."""

import dataclasses
import json
import shutil
from pathlib import Path

import torch
from PIL import Image

from star.config.params import TASKS, Params
from star.evaluation.evaluate import evaluate
from star.miniature import world
from star.policy.rollout import sample_images
from star.policy.sd3 import SD3Policy, load_policy
from star.pretraining.generator import TAG_WEIGHTS, PretrainConfig
from star.prompts.prepare import prepare
from star.prompts.records import PromptRecord, write_records
from star.system.files import write_text_atomic
from star.system.images import grid

GRID_COLUMNS = 12  # the first 36 GenEval test prompts, then 12 signs: the tags come in turn
TEMPLATE = """---
license: apache-2.0
pipeline_tag: text-to-image
library_name: diffusers
---

# The miniature: a few-million-parameter Stable Diffusion 3

A complete `StableDiffusion3Pipeline` of {parameters:.2f} million parameters, trained from nothing on a synthetic world
of flat silhouettes and signs, so that STAR can be run, tested and understood on a laptop. It draws nothing else.

```python
pipe = StableDiffusion3Pipeline.from_pretrained("models/miniature", torch_dtype=torch.float32)
pipe(
    "a photo of a red car",
    num_inference_steps={steps},
    guidance_scale={guidance},
    height=64,
    width=64,
    max_sequence_length={t5_tokens},
)
```

![48 samples of the base model](samples.png)

The samples are the first prompts of the test sets in order, one seed each, {steps} steps, guidance {guidance}; nothing
was picked.

## Data

Drawn on the fly by `star.miniature.world`, never stored: {classes} of GenEval's classes ({class_names}) as one-glyph
silhouettes of Font Awesome 6 Free Solid (icons CC BY 4.0, font SIL OFL 1.1) in GenEval's ten colours, one to four
objects in structured places, and signs with words of two to five random capitals. Prompts are GenEval's six forms and
`a sign that says "WORD"`, mixed as {mixture}.

## Training

`star pretrain` (seed {config.seed}), two stages on a two-core CPU:

| stage | steps x batch | images | last figure |
|---|---|---|---|
| VAE | {config.vae_steps} x {config.vae_batch} | {vae_images:,} | {psnr:.1f} dB |
| text encoders and transformer | {config.stop} x {config.batch} | {images:,} | flow-matching loss {loss:.4f} |

Recipe: rectified flow, logit-normal noise levels, Muon for the blocks' matrices and AdamW for the rest (rate
{config.learning_rate}), linear decay over the last {config.decay_share:.0%} of {config.steps} steps, EMA {config.ema}.
The run stops at step {config.stop} of that schedule: its tail would sharpen the images and leave RL less to improve.
The full log is `training-log.jsonl`; weights are float16 safetensors.

## Scores of this base

Held-out test prompts of the default `params.yaml`, 95 % bootstrap intervals over prompts.

| benchmark | score |
|---|---|
{scores}

Detector, OCR and preference stand-in are the miniature's own; the figures say nothing about Stable Diffusion 3.5.
"""


def write_card(model: Path, work: Path, config: PretrainConfig, params: Params) -> None:
    """Evaluate the model on the default test prompts and write README.md, samples.png and the log
    into its folder."""
    params = dataclasses.replace(params, model=dataclasses.replace(params.model, path=str(model)))
    tests = {task: prepare(task, params.prompts, params.seed)[1] for task in TASKS}
    for task, records in tests.items():
        write_records(work / "card" / task / "test.jsonl", records)
    evaluate(
        params, "base", None, work / "card", work / "card" / "state", work / "card" / "evaluate"
    )
    scores = json.loads((work / "card" / "evaluate" / "scores.json").read_text())["benchmarks"]
    policy = load_policy(params.model, torch.device("cpu"))
    _draw_grid(policy, [*tests["geneval"][:36], *tests["ocr"][:12]], params).save(
        model / "samples.png"
    )
    shutil.copy(work / "log.jsonl", model / "training-log.jsonl")
    log = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    parts = (
        policy.transformer,
        policy.pipe.vae,
        policy.pipe.text_encoder,
        policy.pipe.text_encoder_2,
    )
    card = TEMPLATE.format(
        parameters=sum(
            p.numel() for part in (*parts, policy.pipe.text_encoder_3) for p in part.parameters()
        )
        / 1e6,
        steps=params.evaluate.steps,
        guidance=params.model.guidance_scale,
        t5_tokens=params.model.t5_tokens,
        classes=len(world.CLASSES),
        class_names=", ".join(world.CLASSES),
        mixture=", ".join(f"{tag} {weight:.0%}" for tag, weight in TAG_WEIGHTS.items()),
        config=config,
        vae_images=config.vae_steps * config.vae_batch,
        images=config.stop * config.batch,
        psnr=next(line["psnr_db"] for line in reversed(log) if line["part"] == "vae"),
        loss=next(line["loss"] for line in reversed(log) if line["part"] == "flow"),
        scores=_score_rows(scores),
    )
    write_text_atomic(model / "README.md", card)


def _draw_grid(policy: SD3Policy, records: list[PromptRecord], params: Params) -> Image.Image:
    prompts = [record.prompt for record in records]
    return grid(
        sample_images(policy, prompts, range(len(prompts)), params.evaluate.steps),
        columns=GRID_COLUMNS,
    )


def _score_rows(scores: dict) -> str:
    def row(name: str, value: dict) -> str:
        return f"| {name} | {value['mean']:.3f} ({value['low']:.3f} to {value['high']:.3f}) |"

    geneval = scores["geneval"]
    rows = [row("GenEval-style strict, mean of six tags", geneval["strict"])]
    rows.append(row("GenEval-style soft, mean of six tags", geneval["soft"]))
    rows += [f"| strict, {tag} | {value['strict']:.3f} |" for tag, value in geneval["tags"].items()]
    rows += [
        row("OCR reward", scores["ocr"]["reward"]),
        row("OCR exact match", scores["ocr"]["exact"]),
    ]
    return "\n".join([*rows, row("preference stand-in", scores["preference"]["score"])])
