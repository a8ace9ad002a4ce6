"""Prompt sets by URL: fetched once, known by their SHA-256, kept in `FETCHED` under that name.

The checksum is the pin, the URL only where the file can be had; give one that names a Git commit. A
file that a user places under its checksum is as good as a fetched one: what is there is not asked
for again.

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
from star.system.errors import StarError, writing
from star.system.progress import Progress

FETCHED = Path("data/prompts/fetched")
MOST_BYTES = 200_000_000
TIMEOUT = 30.0  # seconds without an answer, or without the next bytes
PAUSES = (1.0, 2.0, 4.0)  # seconds before each further try
_PIECE_BYTES = 1 << 16
_TROUBLE = (OSError, http.client.HTTPException)  # no connection, an error status, a timeout


def fetched_file(source: PromptSource, key: str) -> Path:
    """Return the file of a source, its checksum verified; fetch it unless it is there.

    Args:
        source: URL (https, or http on the loopback) and 64 hexadecimal digits or None.
        key: dotted key of params.yaml that names the source, for messages.

    Raises:
        StarError: a file with another checksum, or no checksum to compare with; a redirect away
            from https; more than `MOST_BYTES`; a file that cannot be fetched (the message says
            where to place it by hand) or kept.
    """
    path = FETCHED / (source.sha256 or "<its SHA-256>")
    if path.is_file():
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != source.sha256:
            another = f"its SHA-256 is {found}, not the one it is named by"
            raise StarError(f"{path}: {another}; remove the file")
        return path
    try:
        body = _fetch(source.url)
    except StarError:
        raise
    except (*_TROUBLE, ValueError) as error:  # ValueError: a malformed host, of a redirect too
        pin = "" if source.sha256 else f", with that SHA-256 as {key}.sha256 in params.yaml"
        raise StarError(
            f"{key}: {source.url} cannot be fetched ({_reason(error)}); get it elsewhere and "
            f"place it as {path.absolute()}{pin}"
        ) from error
    found = hashlib.sha256(body).hexdigest()
    if source.sha256 not in (None, found):
        another = f"has the SHA-256 {found}, params.yaml says {source.sha256}"
        raise StarError(f"{key}: {source.url} {another}; nothing was kept")
    _keep(body, FETCHED / found)
    if source.sha256 is None:
        look = f"look at {FETCHED / found} and put into params.yaml: sha256: {found}"
        raise StarError(f"{key}: not pinned; {look}")
    return path


def _fetch(url: str) -> bytes:
    """Return the body behind a URL, with tries after `PAUSES`.

    A request that the server calls wrong is not tried again."""
    for pause in PAUSES:
        try:
            return _download(url)
        except _TROUBLE as error:
            if isinstance(error, HTTPError) and error.code < 500:
                raise
            tqdm.write(f"{url}: {_reason(error)}; once more in {pause:g} s")
        time.sleep(pause)
    return _download(url)


def _download(url: str) -> bytes:
    """Return the body of one try, with a progress bar; `_TROUBLE` if it ends too early."""
    request = urllib.request.Request(url, headers={"User-Agent": "star"})
    opener = urllib.request.build_opener(_Redirects())
    body = bytearray()
    with opener.open(request, timeout=TIMEOUT) as response:
        size = response.length  # None where the server does not say
        name = Path(urlsplit(url).path).name
        with Progress(total=size, desc=name, unit="B", unit_scale=True, mininterval=1) as bar:
            while piece := response.read(_PIECE_BYTES):
                body += piece
                bar.update(len(piece))
                if max(len(body), size or 0) > MOST_BYTES:
                    most = f"more than {MOST_BYTES:,} bytes, which is no prompt set"
                    raise StarError(f"{url}: {most}")
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
    """Return what went wrong, in one line."""
    text = str(getattr(error, "reason", error))
    if isinstance(error, HTTPError):
        text = f"HTTP {error.code} {text}"
    return " ".join(text.split()) or type(error).__name__


def _keep(body: bytes, path: Path) -> None:
    """Write a file whole or not at all; two tasks with the same source may do so concurrently."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(body)
        os.replace(temporary, path)
