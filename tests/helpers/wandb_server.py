"""A stand-in for W&B's server: as much as `wandb sync` and a login need, keeping what it is sent.

Of a run that it knows it tells the number of history lines and the last one, so that a later part
goes behind the earlier. It answers what wandb 0.31 was seen to ask; W&B's own was not tried."""

import gzip
import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Received(ThreadingHTTPServer):
    """By run: title, last settings, lines of history, and names of the files uploaded."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.history: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.files: dict[str, set[str]] = defaultdict(set)
        self.titles: dict[str, str] = {}
        self.settings: dict[str, str] = {}


@contextmanager
def serving() -> Iterator[tuple[str, Received]]:
    """Inside, the server runs at the address."""
    with Received() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Received

    def do_POST(self) -> None:
        body, answer = self._body(), {}
        if self.path == "/graphql":
            answer = {"data": self._data(json.loads(body))}
        elif self.path.endswith("/file_stream"):
            part = json.loads(body).get("files", {}).get("wandb-history.jsonl")
            if part is not None:
                lines = self.server.history[self.path.split("/")[-2]]
                lines[part["offset"] :] = map(json.loads, part["content"])
        self._answer(answer)

    def do_PUT(self) -> None:
        self._body()
        _, _, run, name = self.path.split("/", 3)
        self.server.files[run].add(name)
        self._answer({})

    def _data(self, asked: dict[str, Any]) -> dict[str, Any]:
        given = asked.get("variables", {})
        project = {"id": "p", "name": "star", "entity": {"id": "e", "name": "me"}}
        titles = self.server.titles
        match asked.get("operationName"):
            case "Viewer":
                user = {"id": "u", "entity": "me", "username": "me", "email": "", "flags": "{}"}
                return {"viewer": user | {"teams": {"edges": []}}}
            case "UpsertBucket":
                run = given["name"]
                titles[run] = given["displayName"] or titles[run]
                self.server.settings[run] = given["config"]
                bucket = self._named(run) | {"project": project}
                return {"upsertBucket": {"bucket": bucket, "inserted": True}}
            case "RunResumeStatus":
                run = given["name"]
                return {"model": project | {"bucket": self._known(run) if run in titles else None}}
            case "CreateRunFiles":
                run, place = given["run"], f"http://{self.headers['host']}/up"
                names = given["files"]
                files = [{"name": name, "uploadUrl": f"{place}/{run}/{name}"} for name in names]
                return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}
        return {}

    def _named(self, run: str) -> dict[str, Any]:
        title = self.server.titles[run]
        return {"id": run, "name": run, "displayName": title, "config": "{}"}

    def _known(self, run: str) -> dict[str, Any]:
        lines = self.server.history[run]
        counts = {"logLineCount": 0, "historyLineCount": len(lines), "eventsLineCount": 0}
        tails = {"historyTail": json.dumps(list(map(json.dumps, lines[-1:]))), "eventsTail": "[]"}
        rest = {"summaryMetrics": "{}", "tags": [], "notes": None, "wandbConfig": '{"t": 1}'}
        return {**self._named(run), **counts, **tails, **rest}

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        return gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body

    def _answer(self, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
