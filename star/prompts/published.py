"""Prompt sets by URL: fetched once, known by their SHA-256, kept in `FETCHED` under that name.

The checksum is the pin, the URL only where the file can be had; give one that names a Git commit. A
file that a user places under its checksum is as good as a fetched one, and the network is asked for
nothing that is there.

No file is trusted on first use: with ``sha256: null`` it is fetched and kept, and refused with the
line that belongs into params.yaml. From then on params.yaml says for every machine what the prompts
are."""

import hashlib
import http.client
import os
import time
import urllib.request
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

from tqdm import tqdm

from star.config.params import PromptSource
from star.system.errors import StarError
from star.system.progress import Progress

FETCHED = Path("data/prompts/fetched")
MOST_BYTES = 200_000_000
TIMEOUT = 30.0  # seconds without an answer, or without the next bytes
PAUSES = (1.0, 2.0, 4.0)  # seconds before each further try
_PIECE_BYTES = 1 << 16


def fetched_file(source: PromptSource, key: str) -> Path:
    """The file of a source, its checksum verified; fetched unless it is there.

    Args:
        source: URL (the schema lets https pass, and http on the loopback) and 64 hexadecimal digits
            or None.
        key: dotted key of params.yaml that names the source, for messages.

    Raises:
        StarError: a file with another checksum, or no checksum to compare with; a redirect away
            from https; more than `MOST_BYTES`; a file that cannot be fetched (the message says
            where to place it by hand) or kept.
    """
    path = FETCHED / (source.sha256 or "<its SHA-256>")
    if path.is_file():
        if (found := _digest(path.read_bytes())) != source.sha256:
            raise StarError(
                f"{path}: its SHA-256 is {found}, not the one it is named by; remove the file"
            )
        return path
    try:
        body = _fetch(source.url)
    except StarError:
        raise
    except (
        OSError,
        http.client.HTTPException,
        ValueError,
    ) as error:  # ValueError: a malformed host, of a redirect too
        raise StarError(
            f"{key}: {source.url} cannot be fetched ({_reason(error)}); get it elsewhere and place it as "
            f"{path.absolute()}"
            + ("" if source.sha256 else f", with that SHA-256 as {key}.sha256 in params.yaml")
        ) from error
    found = _digest(body)
    if source.sha256 is None:
        _keep(body, FETCHED / found)
        raise StarError(
            f"{key}: not pinned; look at {FETCHED / found} and put into params.yaml: sha256: {found}"
        )
    if found != source.sha256:
        raise StarError(
            f"{key}: {source.url} has the SHA-256 {found}, params.yaml says {source.sha256}; nothing was kept"
        )
    _keep(body, path)
    return path


def _fetch(url: str) -> bytes:
    """The body behind a URL; tried again after `PAUSES`, but not where the server says that the
    request is wrong."""
    for pause in PAUSES:
        try:
            return _download(url)
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, HTTPError) and error.code < 500:
                raise
            tqdm.write(f"{url}: {_reason(error)}; once more in {pause:g} s")
        time.sleep(pause)
    return _download(url)


def _download(url: str) -> bytes:
    """One try, with a progress bar.

    Raises:
        OSError, http.client.HTTPException: no connection, an error status, a timeout, a body that
        ends too early. StarError: a refused redirect, a body of more than `MOST_BYTES`.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "star"})
    body = bytearray()
    with urllib.request.build_opener(_Redirects()).open(request, timeout=TIMEOUT) as response:
        size = response.length  # None where the server does not say
        with Progress(
            total=size, desc=Path(urlsplit(url).path).name, unit="B", unit_scale=True, mininterval=1
        ) as bar:
            while piece := response.read(_PIECE_BYTES):
                body += piece
                bar.update(len(piece))
                if max(len(body), size or 0) > MOST_BYTES:
                    raise StarError(
                        f"{url}: more than {MOST_BYTES:,} bytes, which is no prompt set"
                    )
    if size is not None and len(body) < size:
        raise ConnectionError(f"ended after {len(body)} of {size} bytes")
    return bytes(body)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https, and on the same server."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Any,
        newurl: str,
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme != "https" and (new.scheme, new.netloc) != (old.scheme, old.netloc):
            raise StarError(f"{req.full_url}: redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _reason(error: Exception) -> str:
    """What went wrong, in one line."""
    text = (
        f"HTTP {error.code} {error.reason}"
        if isinstance(error, HTTPError)
        else str(getattr(error, "reason", error))
    )
    return " ".join(text.split()) or type(error).__name__


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _keep(body: bytes, path: Path) -> None:
    """Write a file whole or not at all; two tasks with the same source may do so at once."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(body)
        os.replace(temporary, path)
    except OSError as error:
        raise StarError(f"{path}: cannot be written ({error.strerror})") from error
