"""A model hub on the loopback, as far as `star.system.hub` uses one: model information, file lists,
files."""

import hashlib
import http.server
import json
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT, NEWER = "c0ffee" + "0" * 34, "decade" + "0" * 34


@dataclass
class Repository:
    """What the hub has under an id: a folder's files at `COMMIT`, and those of another at `NEWER`
    if there is one."""

    folder: Path
    newer: Path | None = None
    gated: bool = False

    def at(self, revision: str) -> tuple[str, Path] | None:
        """Commit and files of a revision."""
        commits = {COMMIT: self.folder} | ({NEWER: self.newer} if self.newer else {})
        commit = list(commits)[-1] if revision == "main" else revision
        return (commit, commits[commit]) if commit in commits else None


@dataclass
class Hub(http.server.ThreadingHTTPServer):
    """`repositories` by id; `requests` are the paths that were asked for."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    status: int = 200  # another one is all that it answers

    def __post_init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if self.server.status != 200:
            return self.refuse(self.server.status, None)
        api = parts[:2] == ["api", "models"]
        owner, name, *rest = parts[2:] if api else parts
        repository = self.server.repositories.get(f"{owner}/{name}")
        if repository is None:
            return self.refuse(401, "RepoNotFound")
        found = repository.at(rest[1] if len(rest) > 1 else "main")
        if found is None:
            return self.refuse(404, "RevisionNotFound")
        commit, folder = found
        if api:
            return self.answer_api(f"{owner}/{name}", rest[:1] == ["tree"], commit, folder)
        if repository.gated:  # the file list of a gated model is public, its files are not
            return self.refuse(401, "GatedRepo")
        return self.answer_file(commit, folder.joinpath(*rest[2:]))

    do_HEAD = do_GET

    def answer_api(self, model: str, tree: bool, commit: str, folder: Path) -> None:
        names = {
            file.relative_to(folder).as_posix(): file
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
        if tree:
            entries = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": _etag(file)}
                for name, file in names.items()
            ]
            return self.answer(json.dumps(entries).encode(), {"Content-Type": "application/json"})
        info = {"id": model, "sha": commit, "siblings": [{"rfilename": name} for name in names]}
        self.answer(json.dumps(info).encode(), {"Content-Type": "application/json"})

    def answer_file(self, commit: str, file: Path) -> None:
        if not file.is_file():
            return self.refuse(404, "EntryNotFound")
        self.answer(file.read_bytes(), {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": commit})

    def answer(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def refuse(self, status: int, code: str | None) -> None:
        self.send_response(status)
        if code is not None:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
