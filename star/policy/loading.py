"""Finds and checks the directory of an SD3 pipeline, and opens it whole or not at all.

No code from the hub and no pickle: the classes of the parts are ours to say, weights are
safetensors.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextModelWithProjection, T5EncoderModel
from transformers.utils import logging as transformers_logging

from star.config.params import ModelParams
from star.system.errors import StarError
from star.system.hub import DESCRIPTIONS, WEIGHTS, check_weights, model_folder, refuse_quantised
from star.system.pretrained import OPENING_ERRORS, cannot_open, check_loaded

KEY = "model.path"
INDEX = "model_index.json"
MODELS = {
    "transformer": SD3Transformer2DModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModelWithProjection,
    "text_encoder_2": CLIPTextModelWithProjection,
    "text_encoder_3": T5EncoderModel,
}
OTHERS = ("scheduler", "tokenizer", "tokenizer_2", "tokenizer_3")


def find_pipeline(model: ModelParams) -> Path:
    """Return the directory of the pipeline; a hub id is fetched, what describes it first.

    Raises:
        StarError: what `star.system.hub.model_folder` refuses; a directory that lacks a part or is
            no SD3 pipeline.
    """
    where = f"{KEY} {model.path!r}"
    _check_description(model_folder(model.path, model.revision, KEY, DESCRIPTIONS), where)
    weights = [f"{part}/{name}" for part in MODELS for name in WEIGHTS]
    folder = model_folder(model.path, model.revision, KEY, [*DESCRIPTIONS, *weights])
    for part in MODELS:
        check_weights(folder / part, f"{where}: {part}/", model.path, model.revision)
    return folder


def open_pipeline(
    folder: Path, model: ModelParams, text_dtype: torch.dtype
) -> StableDiffusion3Pipeline:
    """Open a directory of `find_pipeline`; all but the text encoders are float32.

    Raises:
        StarError: a part that does not open, or not whole.
    """
    _hide_bars()
    parts = {part: _open_part(folder, part, model.path, text_dtype) for part in MODELS}
    return _assembled(folder, model.path, parts)


def open_tokenizers(folder: Path, model: ModelParams) -> StableDiffusion3Pipeline:
    """Open tokenizers and scheduler alone, in a moment."""
    _hide_bars()
    return _assembled(folder, model.path, dict.fromkeys(MODELS))


def _hide_bars() -> None:
    """Hide the bars of a second's loading: an error is one line on standard error."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def _open_part(folder: Path, part: str, path: str, text_dtype: torch.dtype) -> Any:
    kind, is_text = MODELS[part], part.startswith("text_encoder")
    # transformers would say only that some shape is wrong; `check_loaded` says which.
    more = {"ignore_mismatched_sizes": True} if is_text else {}
    try:
        opened, report = kind.from_pretrained(
            folder,
            subfolder=part,
            dtype=text_dtype if is_text else torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **more,
        )
        check_loaded(opened, report)
    except OPENING_ERRORS as error:
        raise cannot_open(f"{kind.__name__} ({part}/)", path, KEY, error) from error
    return opened


def _assembled(folder: Path, path: str, parts: dict[str, Any]) -> StableDiffusion3Pipeline:
    try:
        return StableDiffusion3Pipeline.from_pretrained(folder, local_files_only=True, **parts)
    except OPENING_ERRORS as error:
        raise cannot_open("StableDiffusion3Pipeline", path, KEY, error) from error


def _check_description(folder: Path, where: str) -> None:
    """Refuse an index that is no SD3 pipeline's, and parts that it names and that are not there."""
    if not (folder / INDEX).is_file():
        raise StarError(f"{where}: {INDEX} is missing; it is not a diffusers pipeline directory")
    index = _read(folder / INDEX, where)
    if index.get("_class_name") != StableDiffusion3Pipeline.__name__:
        raise StarError(f"{where}: a {index.get('_class_name')}, not a StableDiffusion3Pipeline")
    for part in (*MODELS, *OTHERS):
        match index.get(part):
            case [str(library), str(name)]:
                if part in MODELS:
                    _check_class(name, MODELS[part].__name__, f"{where}: {INDEX}, {part}")
            case other:
                raise StarError(
                    f"{where}: {INDEX} has no library and class for {part}, but {str(other):.80}; "
                    "a pipeline with all three text encoders is needed"
                )
        if library not in ("diffusers", "transformers"):
            raise StarError(f"{where}: {INDEX}, {part}: code of {library!r} is not run")
        if not (folder / part).is_dir():
            raise StarError(f"{where}: the part {part}/ is missing; copy the whole directory")
    for part in MODELS:
        refuse_quantised(folder / part, f"{where}: {part}/")
    transformer = _read(folder / "transformer/config.json", where).get("_class_name")
    _check_class(transformer, "SD3Transformer2DModel", f"{where}: transformer/config.json")
    scheduler = _read(folder / "scheduler/scheduler_config.json", where)
    for kind in (index["scheduler"][1], scheduler.get("_class_name")):
        if not str(kind).startswith("FlowMatch"):
            raise StarError(f"{where}: the scheduler is a {kind}; a flow matching model is needed")


def _check_class(found: object, wanted: str, where: str) -> None:
    if found != wanted:
        raise StarError(f"{where}: a {found} and not a {wanted}; give a model of the SD3 family")


def _read(file: Path, where: str) -> dict:
    name = f"{file.parent.name}/{file.name}"
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StarError(f"{where}: {name} cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise StarError(f"{where}: {name} is no JSON object")
    return value
