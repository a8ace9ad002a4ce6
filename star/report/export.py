"""A trained adapter as a folder in the model hub's form: weights that plain diffusers loads, and a
model card.

Nothing is uploaded; `hf upload` or a copy does that.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from star.config.differences import described
from star.config.params import Params, fingerprint
from star.report.provenance import git_commit
from star.report.run import read_object
from star.system.errors import StarError, writing
from star.system.files import write_text_atomic
from star.system.hub import is_hub_id
from star.training.resume import code_digest, parameter_sections

CARD = """---
{front}---

# {title}

LoRA adapter for `{base}`, trained with reinforcement learning on the task **{task}** by the method `{method}`
of STAR (SpatioTemporal Adaptive Reward allocation, arXiv 2606.17979, in the reconstruction of the `star` project).

## Use

```python
import torch
from diffusers import StableDiffusion3Pipeline

pipe = StableDiffusion3Pipeline.from_pretrained("{base}", {revision}torch_dtype=torch.float32)
pipe.load_lora_weights("PATH OR HUB ID OF THIS FOLDER")
image = pipe(
    "a prompt",
    num_inference_steps={steps},
    guidance_scale={guidance},
    max_sequence_length={t5_tokens},
    height={resolution},
    width={resolution},
).images[0]
```

These are the evaluation's settings: float32 weights, computed under autocast where `model.precision` says so.

## Evaluation

Held-out prompts of the three benchmarks as `params.yaml` sets them; 95 % bootstrap intervals over prompts. GenEval and
preference are what `rewards` in `params.yaml` names, and not the published evaluators unless it names those.

| benchmark | score | mean | 95 % interval |
|---|---|---|---|
{scores}

## Training

{training}

{code} All parameters are in `params.yaml`; `parameters.json` has what the training recorded.
"""


def export_adapter(
    params: Params, params_path: Path, training: Path, evaluation: Path, output: Path
) -> None:
    """Write the adapter, its card (README.md), the parameter file and what the training recorded
    into ``output``.

    Args:
        training: folder of `star train`: adapter/, log.jsonl and parameters.json.
        evaluation: folder of `star evaluate` of that adapter: scores.json.

    Raises:
        StarError: a file is missing or malformed, the evaluation is of the base model or of another
            training, or either was made with other parameters than ``params``.
    """
    weights, log_file = (
        training / "adapter" / "pytorch_lora_weights.safetensors",
        training / "log.jsonl",
    )
    base_file = training / "adapter" / "base.json"
    for file in (
        weights,
        base_file,
        log_file,
        training / "parameters.json",
        evaluation / "scores.json",
    ):
        if not file.is_file():
            raise StarError(
                f"{file}: no such file; give the folders of a finished training and of its evaluation"
            )
    recorded, scores = (
        read_object(training / "parameters.json"),
        read_object(evaluation / "scores.json"),
    )
    revision = params.model.revision or read_object(base_file).get(
        "revision"
    )  # the commit that a hub id stood for
    _check(params, params_path, recorded, scores, training, evaluation)
    log = [json.loads(line) for line in log_file.read_text(encoding="utf-8").splitlines()]
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        for file in sorted((training / "adapter").iterdir()):
            shutil.copy(file, output / file.name)
        shutil.copy(params_path, output / "params.yaml")
        shutil.copy(training / "parameters.json", output / "parameters.json")
    same = recorded.get("code") == code_digest()
    code = f"Exported at commit {git_commit(params_path.resolve().parent)}, whose code "
    code += "is the training's." if same else "is not the training's (`code` in `parameters.json`)."
    write_text_atomic(output / "README.md", _card(params, revision, scores, log, code))


def _check(
    params: Params,
    params_path: Path,
    recorded: dict[str, Any],
    scores: dict[str, Any],
    training: Path,
    evaluation: Path,
) -> None:
    """That adapter, scores and parameters are of one run."""
    if not scores.get("method"):
        raise StarError(
            f"{evaluation}: an evaluation of the base model; give that of the adapter in {training}"
        )
    theirs, ours = ((values.get("task"), values.get("method")) for values in (scores, recorded))
    if theirs != ours or scores.get("checkpoint") != f"{ours[0]}-{ours[1]}":
        raise StarError(
            f"{evaluation}/scores.json: scores of {scores.get('checkpoint')} (task {theirs[0]}, method {theirs[1]}), "
            f"but {training} is a training of task {ours[0]}, method {ours[1]}; give the evaluation of this adapter"
        )
    if ours[0] not in dataclasses.asdict(params.rewards) or ours[1] not in params.methods:
        raise StarError(
            f"{params_path}: has no task {ours[0]} or no method {ours[1]}; give the training's parameters"
        )
    now = parameter_sections(params, str(ours[0]), params.method(str(ours[1])))
    then = {key: recorded.get(key) for key in now}
    if then != now:
        raise StarError(
            f"{params_path}: not the parameters of {training}/parameters.json: {described(then, now)}; give the "
            "training's own file (--params)"
        )
    if scores.get("params_fingerprint") != fingerprint(
        params.model, params.rewards, params.evaluate, params.seed
    ):
        raise StarError(
            f"{evaluation}/scores.json: evaluated with another model, rewards, evaluate or seed than {params_path} "
            "has; evaluate this adapter again"
        )


def _card(params: Params, revision: str | None, scores: dict, log: list[dict], code: str) -> str:
    task, method, base = scores["task"], scores["method"], params.model.path
    rows = [
        (name, key, value)
        for name, benchmark in scores["benchmarks"].items()
        for key, value in benchmark.items()
        if key != "tags"
    ]
    hub = not Path(base).is_dir() and is_hub_id(
        base
    )  # the hub refuses a card whose base_model is no id
    front = ({"base_model": base} if hub else {}) | {
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
        revision=f'revision="{revision}", ' if revision else "",
        steps=params.evaluate.steps,
        t5_tokens=params.model.t5_tokens,
        guidance=params.model.guidance_scale,
        resolution=params.model.resolution,
        scores="\n".join(
            f"| {name} | {key} | {v['mean']:.4f} | {v['low']:.4f} to {v['high']:.4f} |"
            for name, key, v in rows
        ),
        training=training,
        code=code,
    )
