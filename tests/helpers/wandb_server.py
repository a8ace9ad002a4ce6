"""A stand-in for W&B's server: as much of its interface as `wandb sync` needs, keeping what it is
sent.

It says what a server says of a run that it knows, the number of its history lines and the last one,
so that a later part of the run goes behind the earlier. Written to what wandb 0.31 was seen to ask;
W&B's own server was not tried."""

import gzip
import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Received:
    """By run: its title, its settings as they came last, lines of its history, and names of the
    files uploaded."""

    def __init__(self) -> None:
        self.history: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.files: dict[str, set[str]] = defaultdict(set)
        self.titles: dict[str, str] = {}
        self.settings: dict[str, str] = {}


@contextmanager
def serving() -> Iterator[tuple[str, Received]]:
    """Inside, the server runs at the address."""
    received = Received()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(received))
    address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield address, received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(received: Received) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path.endswith("/file_stream"):
                part = json.loads(body).get("files", {}).get("wandb-history.jsonl")
                if part is not None:
                    lines = received.history[self.path.split("/")[-2]]
                    lines[part["offset"] :] = map(json.loads, part["content"])
            self._answer({"data": self._data(json.loads(body))} if self.path == "/graphql" else {})

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            _, _, run, name = self.path.split("/", 3)
            received.files[run].add(name)
            self._answer({})

        def _data(self, asked: dict[str, Any]) -> dict[str, Any]:
            given = asked.get("variables", {})
            project = {"id": "p", "name": "star", "entity": {"id": "e", "name": "me"}}
            match asked.get("operationName"):
                case "UpsertBucket":
                    run = given["name"]
                    received.titles[run] = given["displayName"] or received.titles[run]
                    received.settings[run] = given["config"]
                    bucket = {
                        "id": run,
                        "name": run,
                        "displayName": received.titles[run],
                        "project": project,
                    }
                    return {"upsertBucket": {"bucket": bucket | {"config": "{}"}, "inserted": True}}
                case "RunResumeStatus":
                    return {"model": project | {"bucket": self._known(given["name"])}}
                case "CreateRunFiles":
                    run, host = given["run"], self.headers["host"]
                    files = [
                        {"name": name, "uploadUrl": f"http://{host}/up/{run}/{name}"}
                        for name in given["files"]
                    ]
                    return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}
            return {}

        def _known(self, run: str) -> dict[str, Any] | None:
            if run not in received.titles:
                return None
            lines = received.history[run]
            known = {
                "id": run,
                "name": run,
                "displayName": received.titles[run],
                "config": "{}",
                "summaryMetrics": "{}",
            }
            known |= {
                "logLineCount": 0,
                "historyLineCount": len(lines),
                "eventsLineCount": 0,
                "eventsTail": "[]",
            }
            known["historyTail"] = json.dumps([json.dumps(line) for line in lines[-1:]])
            return known | {"tags": [], "notes": None, "wandbConfig": '{"t": 1}'}

        def _answer(self, value: dict[str, Any]) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
