"""Models by hub id: their files fetched into the hub's cache, and one plain sentence for whatever
goes wrong.

Nothing else asks the network for a model. What comes back is a directory and is opened as one; a
model that is a directory from the start is never asked for anywhere. Of a repository only
descriptions and safetensors weights are fetched: no code, no pickle."""

from collections.abc import Sequence
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
# By their full names: a repository may hold the same weights several times, in half precision or in
# one file.
WEIGHTS = tuple(
    f"{name}{part}.safetensors"
    for name in ("model", "diffusion_pytorch_model")
    for part in ("", "-*-of-*")
)
TIMEOUT = 10.0  # seconds without an answer
LOGIN = "log in with `hf auth login` (or set HF_TOKEN)"


def model_folder(path: str, revision: str | None, key: str, patterns: Sequence[str]) -> Path:
    """A model's directory: ``path`` itself, or that of a hub id in the hub's cache, with the files
    wanted of it.

    The hub is asked once, with a timeout; where it does not answer or refuses, what the cache has
    must do.

    Args:
        path: directory or hub id.
        revision: commit, branch or tag of a hub id; None for its newest.
        key: parameter that holds ``path``, for messages; the revision's is named alike.
        patterns: of the files that are fetched, as `fnmatch` reads them.

    Raises:
        StarError: no such directory or model; a licence to accept; no such revision; no network and
            nothing in the cache; a cache that cannot be written.
    """
    if Path(path).exists():
        return Path(path)
    if not is_hub_id(path):
        raise StarError(
            f"{key} {path!r}: no such directory, and no hub id (owner/name); give one of the two"
        )
    refusal = _refusal(path, revision)
    try:
        folder = snapshot_download(
            path,
            revision=revision,
            allow_patterns=list(patterns),
            local_files_only=refusal is not None,
        )
    except (
        Exception
    ) as error:  # whatever the hub's libraries raise, it must reach the user as one line
        cause = (
            refusal if refusal is not None and isinstance(error, LocalEntryNotFoundError) else error
        )
        raise StarError(_said(cause, path, revision, key)) from error
    return Path(folder)


def is_hub_id(path: str) -> bool:
    """Whether a path that does not exist can be a hub id; below models/ it is a directory whose
    name is wrong."""
    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return not path.startswith("models/")


def _refusal(path: str, revision: str | None) -> Exception | None:
    """Ask the hub for the model: None, or why it does not give it.

    The library's own requests have no timeout and are repeated for half a minute.
    """
    try:
        HfApi().model_info(path, revision=revision, timeout=TIMEOUT)
    except (
        Exception
    ) as error:  # of the HTTP library behind the hub's, which changes, or an answer that is none
        return error
    return None


def _said(error: Exception, path: str, revision: str | None, key: str) -> str:
    """What an error of the hub means and what helps, in one line."""
    while isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = (
            error.__cause__
        )  # a file that could not be looked up, and is not in the cache either
    page, model = f"{constants.ENDPOINT}/{path}", f"{key} {path!r}"
    if isinstance(error, GatedRepoError):
        return (
            f"{model}: the model is gated; accept its licence at {page}, {LOGIN}, and start again"
        )
    if isinstance(error, RepositoryNotFoundError):
        return f"{model}: no directory here, and no such model on the hub; check the spelling; if it is private, {LOGIN}"
    if isinstance(error, RevisionNotFoundError):
        named = f"{key.removesuffix('path')}revision {revision!r}"
        return f"{named}: {path} has no such revision; give a commit from {page}/commits/main, or null for the newest"
    beforehand = f"download it beforehand where there is network (`{_command(path, revision)}`), or give a directory"
    missing = f"{model}: not complete in the hub's cache, and"
    if isinstance(error, OfflineModeIsEnabled):
        return f"{missing} HF_HUB_OFFLINE forbids to ask the hub; {beforehand}"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        mend = "log in anew with `hf auth login`" if status in (401, 403) else "try again later"
        return f"{missing} {constants.ENDPOINT} answers HTTP {status}; {mend}, or {beforehand}"
    if (
        isinstance(error, OSError)
        and error.errno is not None
        and not isinstance(error, ConnectionError)
    ):
        cache = f"the hub's cache {constants.HF_HUB_CACHE} cannot be written ({error.strerror})"
        return f"{model}: {cache}; set HF_HOME to a folder that can"
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return f"{missing} {constants.ENDPOINT} cannot be reached ({reason}); {beforehand}"


def _command(path: str, revision: str | None) -> str:
    return f"hf download {path}" + (f" --revision {revision}" if revision else "")
