"""A trained adapter as a folder in the model hub's form: weights for plain diffusers, a model card.

Nothing is uploaded; `hf upload` or a copy does that."""

import shutil
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from star.config.differences import described
from star.config.params import Params, fingerprint
from star.report.files import read_object, read_objects
from star.report.provenance import git_commit
from star.system.errors import StarError, writing
from star.system.files import write_text_atomic
from star.system.hub import is_hub_id
from star.training.resume import code_digest, parameter_sections

TEMPLATE = Path(__file__).with_name("card.md.j2")
TAGS = ["lora", "stable-diffusion-3", "reinforcement-learning", "star"]


def export_adapter(
    params: Params, params_path: Path, training: Path, evaluation: Path, output: Path
) -> None:
    """Write the adapter, its card (README.md), its parameters and its training's into ``output``.

    Args:
        params: the training's, of the file ``params_path``.
        training: folder of `star train`: adapter/, log.jsonl and parameters.json.
        evaluation: folder of `star evaluate` of that adapter: scores.json.

    Raises:
        StarError: a file is missing or malformed, the evaluation is of the base model or of another
            training, or either was made with other parameters than ``params``.
    """
    adapter, log, record = (
        training / "adapter",
        training / "log.jsonl",
        training / "parameters.json",
    )
    base, scores_file = adapter / "base.json", evaluation / "scores.json"
    for file in (adapter / "pytorch_lora_weights.safetensors", base, log, record, scores_file):
        if not file.is_file():
            raise StarError(
                f"{file}: no such file; give the folders of a finished training and its evaluation"
            )
    recorded, scores = read_object(record), read_object(scores_file)
    _check_scores(scores, recorded, scores_file, training)
    _check_parameters(params, params_path, recorded, record)
    if scores.get("params_fingerprint") != fingerprint(
        params.model, params.rewards, params.evaluate, params.seed
    ):
        raise StarError(
            f"{scores_file}: params_fingerprint: evaluated with another model, rewards, evaluate "
            f"or seed than {params_path} has; evaluate this adapter again"
        )
    *_, (last, _) = read_objects(log)
    model = params.model
    of_hub = not Path(model.path).is_dir() and is_hub_id(model.path)
    card = ModelCard.from_template(
        ModelCardData(
            base_model=model.path if of_hub else None,  # the hub refuses what is none of its ids
            library_name="diffusers",
            pipeline_tag="text-to-image",
            tags=[*TAGS, scores["task"]],
        ),
        template_path=str(TEMPLATE),
        params=params,
        # The commit that a hub id stood for, where the parameters want the newest.
        revision=model.revision or read_object(base).get("revision"),
        scores=scores,
        last=last,
        commit=git_commit(params_path.resolve().parent),
        same_code=recorded.get("code") == code_digest(),
    )
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        for file in sorted(adapter.iterdir()):
            shutil.copy(file, output / file.name)
        shutil.copy(params_path, output / "params.yaml")
        shutil.copy(record, output / "parameters.json")
    write_text_atomic(output / "README.md", f"{card}\n")


def _check_scores(scores: dict, recorded: dict, scores_file: Path, training: Path) -> None:
    """Refuse scores of another checkpoint than the training's."""
    if not scores.get("method"):
        raise StarError(
            f"{scores_file}: an evaluation of base; give that of the adapter in {training}"
        )
    (task, method), theirs = (
        (values.get("task"), values.get("method")) for values in (recorded, scores)
    )
    if theirs != (task, method) or scores.get("checkpoint") != f"{task}-{method}":
        raise StarError(
            f"{scores_file}: scores of {scores.get('checkpoint')} (task {theirs[0]}, method "
            f"{theirs[1]}), but {training} is a training of task {task}, method {method}; give the "
            "evaluation of this adapter"
        )


def _check_parameters(params: Params, params_path: Path, recorded: dict, record: Path) -> None:
    """Refuse parameters that are not those that the training recorded."""
    now = parameter_sections(params.with_method(recorded["method"]), recorded["task"])
    then = {key: recorded.get(key) for key in now}
    if then != now:
        raise StarError(
            f"{params_path}: not the parameters of {record}: {described(then, now)}; give the "
            "training's own file (--params)"
        )
