"""The directory of an SD3 pipeline: found or fetched, checked before its weights are read, opened
whole or not at all.

No code from the hub, no pickle: the classes of the parts are ours to say, and weights are
safetensors."""

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
from star.system.hub import DESCRIPTIONS, WEIGHTS, model_folder
from star.system.pretrained import OPENING_ERRORS, cannot_open, check_loaded

KEY = "model.path"
INDEX = "model_index.json"
PARTS = {
    "transformer": SD3Transformer2DModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModelWithProjection,
    "text_encoder_2": CLIPTextModelWithProjection,
    "text_encoder_3": T5EncoderModel,
}
OTHERS = ("scheduler", "tokenizer", "tokenizer_2", "tokenizer_3")


def find_pipeline(model: ModelParams) -> Path:
    """The directory of the pipeline that ``model`` names; of a hub id it is fetched, what describes
    it first.

    Raises:
        StarError: what `star.system.hub.model_folder` refuses; a directory that lacks a part or is
    no SD3 pipeline."""
    folder = model_folder(model.path, model.revision, KEY, DESCRIPTIONS)
    _check_description(folder, f"{KEY} {model.path!r}")
    weights = [f"{part}/{name}" for part in PARTS for name in WEIGHTS]
    folder = model_folder(model.path, model.revision, KEY, [*DESCRIPTIONS, *weights])
    for part in PARTS:
        if not list((folder / part).glob("*.safetensors")):
            raise StarError(
                f"{KEY} {model.path!r}: {part}/ has no .safetensors weights (pickled weights are not loaded)"
            )
    return folder


def open_pipeline(
    folder: Path, model: ModelParams, text_dtype: torch.dtype
) -> StableDiffusion3Pipeline:
    """The pipeline in a directory from `find_pipeline`: the text encoders in ``text_dtype``, the
    rest in float32.

    Raises:
        StarError: a part that does not open, or not whole.
    """
    _hide_bars()
    parts = {part: _open_part(folder, part, model.path, text_dtype) for part in PARTS}
    return _assembled(folder, model.path, parts)


def open_tokenizers(folder: Path, model: ModelParams) -> StableDiffusion3Pipeline:
    """The pipeline without its models: tokenizers and scheduler, in a moment."""
    _hide_bars()
    return _assembled(folder, model.path, dict.fromkeys(PARTS))


def _hide_bars() -> None:
    """An error is one line on standard error; bars of a second's loading would stand before it."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def _open_part(folder: Path, part: str, path: str, text_dtype: torch.dtype) -> Any:
    kind = PARTS[part]
    # transformers would say only that some shape is wrong; `check_loaded` says which
    more = {"ignore_mismatched_sizes": True} if part.startswith("text_encoder") else {}
    try:
        opened, report = kind.from_pretrained(
            folder,
            subfolder=part,
            dtype=text_dtype if part.startswith("text_encoder") else torch.float32,
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
    """The index and every part that it names are there, and are an SD3 pipeline's."""
    if not (folder / INDEX).is_file():
        raise StarError(f"{where}: {INDEX} is missing; it is not a diffusers pipeline directory")
    index = _read(folder / INDEX, where)
    if index.get("_class_name") != StableDiffusion3Pipeline.__name__:
        raise StarError(f"{where}: a {index.get('_class_name')}, not a StableDiffusion3Pipeline")
    for part in (*PARTS, *OTHERS):
        if not isinstance(index.get(part), list) or len(index[part]) != 2 or index[part][0] is None:
            raise StarError(
                f"{where}: {INDEX} names no {part}; a pipeline with all three text encoders is needed"
            )
        if not all(isinstance(name, str) for name in index[part]):
            raise StarError(
                f"{where}: {INDEX}, {part}: {str(index[part]):.80} is not a library and a class; mend it"
            )
        if not (folder / part).is_dir():
            raise StarError(
                f"{where}: the part {part}/ is missing; copy the whole pipeline directory"
            )
    for part, kind in PARTS.items():
        _check_class(index[part][1], kind.__name__, f"{where}: {INDEX}, {part}")
    for part in (*PARTS, *OTHERS):
        if index[part][0] not in ("diffusers", "transformers"):
            raise StarError(f"{where}: {INDEX}, {part}: code of {index[part][0]!r} is not run")
    transformer = _read(folder / "transformer" / "config.json", where)
    _check_class(
        transformer.get("_class_name"), "SD3Transformer2DModel", f"{where}: transformer/config.json"
    )
    scheduler = _read(folder / "scheduler" / "scheduler_config.json", where)
    for name in (index["scheduler"][1], scheduler.get("_class_name")):
        if not str(name).startswith("FlowMatch"):
            raise StarError(f"{where}: the scheduler is a {name}; a flow matching model is needed")


def _check_class(found: object, wanted: str, where: str) -> None:
    if found != wanted:
        raise StarError(f"{where}: a {found} and not a {wanted}; give a model of the SD3 family")


def _read(file: Path, where: str) -> dict:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StarError(
            f"{where}: {file.parent.name}/{file.name} cannot be read ({error})"
        ) from error
    if not isinstance(value, dict):
        raise StarError(f"{where}: {file.parent.name}/{file.name} is no JSON object")
    return value
