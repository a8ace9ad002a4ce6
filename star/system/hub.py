"""Models by hub id: their files fetched into the hub's cache, one plain message if that fails.

Nothing else asks the network for a model, and nobody is asked for a model that is a directory.
Only descriptions and safetensors weights are fetched: no code, no pickle."""

from collections.abc import Sequence
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from star.system.errors import StarError

DESCRIPTIONS = ("*.json", "*.txt", "*.model")  # configurations, tokenizers
# By their full names: a repository may hold the same weights in half precision or in one file too.
WEIGHTS = tuple(
    f"{name}{part}.safetensors"
    for name in ("model", "diffusion_pytorch_model")
    for part in ("", "-*-of-*")
)
TIMEOUT = 10.0  # seconds without an answer
SOON = 3.0  # the same, where somebody waits for the screen
LOGIN = "log in with `hf auth login` (or set HF_TOKEN)"


def refuse_quantised(folder: Path, where: str) -> None:
    """Refuse a model, or a part of one, whose configuration says that it is quantised.

    Raises:
        StarError: begins with ``where``.
    """
    config = folder / "config.json"
    if config.is_file() and '"quantization_config"' in config.read_text(encoding="utf-8"):
        raise StarError(
            f"{where} has quantised weights (quantization_config in config.json), which are not "
            "supported; give the model in float32 or bfloat16"
        )


def check_weights(folder: Path, where: str, path: str, revision: str | None) -> None:
    """Refuse a model, or a part of one, without safetensors weights under their full names.

    Args:
        folder: of the model or part, after the fetch.
        where: begins the message.
        path, revision: as of `model_folder`.

    Raises:
        StarError: names what is there, and the mend.
    """
    names = [file.name for file in folder.glob("*")]
    if any(fnmatch(name, pattern) for name in names for pattern in WEIGHTS):
        return
    if not Path(path).exists():
        with suppress(Exception):  # of any library below the hub's; the message says less then
            there = HfApi().model_info(path, revision=revision, timeout=TIMEOUT).siblings or []
            names = [Path(file.rfilename).name for file in there]
    begins = ("model.", "diffusion_pytorch_model.")
    variants = [n for n in names if n.startswith(begins) and n.endswith(".safetensors")]
    if variants and not any(fnmatch(name, pattern) for name in names for pattern in WEIGHTS):
        raise StarError(
            f"{where} has only a variant of the weights, {variants[0]}; give a model with the full "
            "ones, or a copy whose files are named without the variant"
        )
    raise StarError(f"{where} has no .safetensors weights (pickled weights are not loaded)")


def model_folder(path: str, revision: str | None, key: str, patterns: Sequence[str]) -> Path:
    """Return a model's directory: ``path`` itself, or that of a hub id in the hub's cache.

    The hub is asked once, with a timeout. If it does not answer or refuses, the cache must do.

    Args:
        path: directory or hub id.
        revision: commit, branch or tag of a hub id; None for its newest.
        key: parameter that holds ``path``, for messages; the revision's has the same prefix.
        patterns: of the files to fetch, as `fnmatch` reads them.

    Raises:
        StarError: no such directory or model; a licence to accept; no such revision; no network and
            nothing in the cache; a cache that cannot be written.
    """
    if Path(path).exists():
        return Path(path)
    if not is_hub_id(path):
        raise StarError(_no_model(path, key))
    refusal = _refusal(path, revision)
    wanted, cached = list(patterns), refusal is not None
    try:
        return Path(
            snapshot_download(
                path, revision=revision, allow_patterns=wanted, local_files_only=cached
            )
        )
    except Exception as error:  # of any library below the hub's
        cause = refusal if refusal and isinstance(error, LocalEntryNotFoundError) else error
        raise StarError(_explain(cause, path, revision, key)) from error


def model_trouble(path: str, revision: str | None, key: str) -> str | None:
    """Return why a model cannot be had here, or None; downloads nothing.

    The arguments are `model_folder`'s.
    """
    if Path(path).exists():
        return None
    if not is_hub_id(path):
        return _no_model(path, key)
    if (refusal := _refusal(path, revision, SOON)) is None:
        return None
    try:
        snapshot_download(path, revision=revision, local_files_only=True)
    except LocalEntryNotFoundError:
        return _explain(refusal, path, revision, key)
    return None


def is_hub_id(path: str) -> bool:
    """Return whether a path that does not exist can be a hub id; models/... is a misspelling."""
    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return not path.startswith("models/")


def _no_model(path: str, key: str) -> str:
    return f"{key} {path!r}: no such directory, and no hub id (owner/name); give one of the two"


def _refusal(path: str, revision: str | None, timeout: float = TIMEOUT) -> Exception | None:
    """Ask the hub for the model; return why it does not give it, or None.

    The library's own requests have no timeout and are repeated for half a minute."""
    try:
        HfApi().model_info(path, revision=revision, timeout=timeout)
    except Exception as error:  # of any library below the hub's
        return error
    return None


def _explain(error: Exception, path: str, revision: str | None, key: str) -> str:
    """Return in one line what an error of the hub means and what helps."""
    while isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # a file that could be neither looked up nor found in the cache
    hub, model = constants.ENDPOINT, f"{key} {path!r}"
    command = f"hf download {path}" + (f" --revision {revision}" if revision else "")
    fetch = f"download it beforehand where there is network (`{command}`), or give a directory"
    missing = f"{model}: not complete in the hub's cache, and"
    match error:
        case GatedRepoError():
            fix = f"accept its licence at {hub}/{path}, {LOGIN}, and start again"
            return f"{model}: the model is gated; {fix}"
        case RepositoryNotFoundError():
            fix = f"check the spelling; if it is private, {LOGIN}"
            return f"{model}: no directory here, and no such model on the hub; {fix}"
        case RevisionNotFoundError():
            fix = f"give a commit from {hub}/{path}/commits/main, or null for the newest"
            named = f"{key.removesuffix('path')}revision {revision!r}"
            return f"{named}: {path} has no such revision; {fix}"
        case OfflineModeIsEnabled():
            return f"{missing} HF_HUB_OFFLINE forbids to ask the hub; {fetch}"
        case HfHubHTTPError():
            status = error.response.status_code
            fix = "log in again with `hf auth login`" if status in (401, 403) else "try again later"
            return f"{missing} {hub} answers HTTP {status}; {fix}, or {fetch}"
        case OSError(errno=int()) if not isinstance(error, ConnectionError):
            cache = f"{constants.HF_HUB_CACHE} cannot be written ({error.strerror})"
            return f"{model}: the hub's cache {cache}; set HF_HOME to a folder that can"
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return f"{missing} {hub} cannot be reached ({reason}); {fetch}"
