"""A model hub on the loopback: the model information, file lists and files that a client asks."""

import hashlib
import json
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT, NEWER = "c0ffee" + "0" * 34, "decade" + "0" * 34


@dataclass
class Repository:
    """A folder's files at `COMMIT`, and those of another at `NEWER` if there is one."""

    folder: Path
    newer: Path | None = None
    gated: bool = False

    def at(self, revision: str) -> tuple[str, Path] | None:
        """Return commit and files of a revision."""
        commits = {COMMIT: self.folder} | ({NEWER: self.newer} if self.newer else {})
        commit = list(commits)[-1] if revision == "main" else revision
        return (commit, commits[commit]) if commit in commits else None


@dataclass
class Hub(ThreadingHTTPServer):
    """`repositories` by id; `requests` are the paths that were asked for."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    status: int = 200  # another one is all that it answers
    xet: str = ""  # where the files' data is, by headers that a mirror passes on from the hub

    def __post_init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if self.server.status != 200:
            return self.answer({}, status=self.server.status)
        api = parts[:2] == ["api", "models"]
        owner, name, *rest = parts[2:] if api else parts
        repository = self.server.repositories.get(f"{owner}/{name}")
        if repository is None:
            return self.refuse(401, "RepoNotFound")
        found = repository.at(rest[1] if len(rest) > 1 else "main")
        if found is None:
            return self.refuse(404, "RevisionNotFound")
        commit, folder = found
        if rest[:1] == ["xet-read-token"]:
            valid = {"X-Xet-Access-Token": "token", "X-Xet-Token-Expiration": "9999999999"}
            return self.answer({"X-Xet-Cas-Url": self.server.xet, **valid})
        if api:
            return self.answer_api(f"{owner}/{name}", rest[:1] == ["tree"], commit, folder)
        if repository.gated:  # the file list of a gated model is public, its files are not
            return self.refuse(401, "GatedRepo")
        file = folder.joinpath(*rest[2:])
        if not file.is_file():
            return self.refuse(404, "EntryNotFound")
        headers = {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": commit}
        if self.server.xet:
            token = f"https://huggingface.co/api/models/{owner}/{name}/xet-read-token/{commit}"
            headers |= {"X-Xet-Hash": "0f" * 32, "X-Xet-Refresh-Route": token}
        self.answer(headers, file.read_bytes())

    do_HEAD = do_GET

    def answer_api(self, model: str, tree: bool, commit: str, folder: Path) -> None:
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        named = [(file.relative_to(folder).as_posix(), file) for file in files]
        value: object = [
            {"type": "file", "path": name, "size": file.stat().st_size, "oid": _etag(file)}
            for name, file in named
        ]
        if not tree:
            siblings = [{"rfilename": name} for name, _ in named]
            value = {"id": model, "sha": commit, "siblings": siblings}
        self.answer({"Content-Type": "application/json"}, json.dumps(value).encode())

    def refuse(self, status: int, code: str) -> None:
        self.answer({"X-Error-Code": code}, status=status)

    def answer(self, headers: dict[str, str], body: bytes = b"", status: int = 200) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
