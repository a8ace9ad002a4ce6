"""A trained adapter as a folder in the model hub's form: weights that plain diffusers loads, and a model card.

Nothing is uploaded; `hf upload` or a copy does that.
"""

import json
import shutil
from pathlib import Path

import yaml

from star.errors import StarError
from star.files import write_text_atomic
from star.params import Params
from star.report.provenance import git_commit

CARD = """---
{front}---

# {title}

LoRA adapter for `{base}`, trained with reinforcement learning on the task **{task}** by the method `{method}`
of STAR (SpatioTemporal Adaptive Reward allocation, arXiv 2606.17979, in the reconstruction of the `star` project).

## Use

```python
import torch
from diffusers import StableDiffusion3Pipeline

pipe = StableDiffusion3Pipeline.from_pretrained("{base}", torch_dtype=torch.bfloat16)
pipe.load_lora_weights("PATH OR HUB ID OF THIS FOLDER")
picture = pipe("a prompt", guidance_scale={guidance}, height={resolution}, width={resolution}).images[0]
```

## Evaluation

Held-out prompts of the three benchmarks as `params.yaml` sets them; 95 % bootstrap intervals over prompts. GenEval and
preference are what `rewards` in `params.yaml` names, and not the published evaluators unless it names those.

| benchmark | score | mean | 95 % interval |
|---|---|---|---|
{scores}

## Training

{training}

Commit {commit}. All parameters are in `params.yaml`.
"""


def export_adapter(params: Params, params_path: Path, training: Path, evaluation: Path, output: Path) -> None:
    """Write the adapter, its card (README.md) and its parameters into ``output``.

    Args:
        training: folder of `star train`: adapter/ and log.jsonl.
        evaluation: folder of `star evaluate` of that adapter: scores.json.

    Raises:
        StarError: a file is missing, or the evaluation is of the base model.
    """
    weights, log_file = training / "adapter" / "pytorch_lora_weights.safetensors", training / "log.jsonl"
    for file in (weights, log_file, evaluation / "scores.json"):
        if not file.is_file():
            raise StarError(f"{file}: no such file; give the folders of a finished training and of its evaluation")
    scores = json.loads((evaluation / "scores.json").read_text(encoding="utf-8"))
    if not scores["method"]:
        raise StarError(f"{evaluation}: an evaluation of the base model; give that of the adapter in {training}")
    log = [json.loads(line) for line in log_file.read_text(encoding="utf-8").splitlines()]
    output.mkdir(parents=True, exist_ok=True)
    for file in sorted((training / "adapter").iterdir()):
        shutil.copy(file, output / file.name)
    shutil.copy(params_path, output / "params.yaml")
    write_text_atomic(output / "README.md", _card(params, scores, log, git_commit(params_path.resolve().parent)))


def _card(params: Params, scores: dict, log: list[dict], commit: str) -> str:
    task, method, base = scores["task"], scores["method"], params.model.path
    rows = [
        (name, key, value)
        for name, benchmark in scores["benchmarks"].items()
        for key, value in benchmark.items()
        if key != "tags"
    ]
    front = {
        "base_model": base,
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["lora", "stable-diffusion-3", "reinforcement-learning", "star", task],
    }
    last, rollout, train = log[-1], params.rollout, params.train
    training = (
        f"{last['epoch']} epochs, {last['images']:,} images, {last['updates']} updates; an epoch is "
        f"{train.prompts_per_epoch} prompts x {train.group_size} images; steps {rollout.window} of {rollout.steps} are "
        f"stochastic; learning rate {train.learning_rate:g}, KL {train.kl_beta:g}, LoRA rank {params.model.lora_rank}; "
        f"guidance {params.model.guidance_scale:g} in training as in evaluation."
    )
    return CARD.format(
        front=yaml.safe_dump(front, sort_keys=False),
        title=f"STAR: {task}, {method}",
        base=base,
        task=task,
        method=method,
        guidance=params.model.guidance_scale,
        resolution=params.model.resolution,
        scores="\n".join(
            f"| {name} | {key} | {v['mean']:.4f} | {v['low']:.4f} to {v['high']:.4f} |" for name, key, v in rows
        ),
        training=training,
        commit=commit,
    )
