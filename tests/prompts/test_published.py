"""Prompt sets by URL, from a server on the loopback: the checksum decides, errors say what to
do."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from star.config.params import TASKS, PromptSetParams, PromptSource, PromptsParams
from star.prompts import published
from star.prompts.prepare import prepare
from star.prompts.published import FETCHED, fetched_file
from star.system.errors import StarError

BODY = b'a sign that says "HI"\n' * 9000  # several pieces
SHA = hashlib.sha256(BODY).hexdigest()
KEY = "prompts.ocr.test_file"


class Server(http.server.ThreadingHTTPServer):
    """Answers the requests one after the other as `answers` says, the last one again and again;
    counts them."""

    answers: list[tuple[int, dict[str, str], bytes]] = [(200, {}, BODY)]
    requests = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        last = len(self.server.answers) - 1
        status, headers, body = self.server.answers[min(self.server.requests, last)]
        self.server.requests += 1
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(published, "PAUSES", (0.0, 0.0, 0.0))
    with Server(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def source(url: str, sha256: str | None = SHA) -> PromptSource:
    return PromptSource(url=url, sha256=sha256)


def refused(url: str, sha256: str | None = SHA) -> str:
    """Return the message, of one line, with which a source is refused."""
    with pytest.raises(StarError) as caught:
        fetched_file(source(url, sha256), KEY)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def kept() -> list[str]:
    return [file.name for file in FETCHED.iterdir()] if FETCHED.exists() else []


def test_a_file_is_fetched_once_with_a_progress_bar(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    named = source(f"{server.url}/dataset/ocr/test.txt?raw=1")
    path = fetched_file(named, KEY)
    assert path == FETCHED / SHA and path.read_bytes() == BODY and kept() == [SHA]
    bar = capsys.readouterr().err
    assert "test.txt: " in bar and "198k/198k" in bar
    assert fetched_file(named, KEY) == path
    assert server.requests == 1


def test_a_file_placed_by_hand_needs_no_server_and_must_have_its_checksum(server: Server) -> None:
    FETCHED.mkdir(parents=True)
    (FETCHED / SHA).write_bytes(BODY)
    assert fetched_file(source(server.url), KEY) == FETCHED / SHA
    (FETCHED / SHA).write_bytes(BODY + b"!")
    message = refused(server.url)
    assert message.startswith(f"{FETCHED / SHA}: ")
    assert hashlib.sha256(BODY + b"!").hexdigest() in message
    assert server.requests == 0


def prepared(train_file: PromptSource | None, test_file: PromptSource) -> list[str]:
    """Return the words of the OCR task's test prompts."""
    sets = PromptSetParams(train=9, test=3, train_file=train_file, test_file=test_file)
    others = dict.fromkeys(TASKS, PromptSetParams(1, 1, None, None))
    prompts = PromptsParams(world="miniature", **others | {"ocr": sets})
    return [record.metadata["text"] for record in prepare("ocr", prompts, 0)[1]]


def test_the_prompt_stage_reads_fetched_files_and_names_the_key_of_others(server: Server) -> None:
    server.answers = [(200, {}, BODY), (404, {}, b"")]
    test_file = source(f"{server.url}/test.txt")
    for _ in range(2):
        assert prepared(None, test_file) == ["HI"] * 3
    assert server.requests == 1
    with pytest.raises(StarError, match=r"^prompts\.ocr\.train_file: .*HTTP 404"):
        prepared(source(server.url, "0" * 64), test_file)


GOOD = (200, {}, BODY)
LENGTH_UNSAID = (200, {"Content-Length": ""}, BODY)
TROUBLE = {
    "unavailable": (503, {}, b""),
    "broken gateway": (502, {}, b"<html>"),
    "ends too early": (200, {"Content-Length": str(len(BODY))}, BODY[:-1]),
    "no HTTP": (200, {"Transfer-Encoding": "chunked", "Content-Length": ""}, b"not a chunk"),
    "leads nowhere": (302, {"Location": "https://"}, b""),
}


def redirect(target: str) -> tuple[int, dict[str, str], bytes]:
    return 302, {"Location": target}, b""


@pytest.mark.parametrize("trouble", TROUBLE)
def test_passing_trouble_is_tried_again(trouble: str, server: Server) -> None:
    server.answers = [TROUBLE[trouble], TROUBLE[trouble], redirect("/there"), LENGTH_UNSAID]
    assert fetched_file(source(server.url), KEY).read_bytes() == BODY
    assert server.requests == 4


@pytest.mark.parametrize("trouble", TROUBLE)
def test_lasting_trouble_says_what_to_place_where(trouble: str, server: Server) -> None:
    server.answers = [TROUBLE[trouble]]
    message = refused(server.url)
    assert message.startswith(f"{KEY}: {server.url} cannot be fetched (")
    assert str(Path.cwd() / FETCHED / SHA) in message
    assert server.requests == 4 and not kept()


ANOTHER = b"something else"
ELSEWHERE = ("http://127.0.0.1:1/x", "http://example.org/x", "//127.0.0.1:1/x", "ftp://127.0.0.1/x")
NOT_ASKED_AGAIN = [
    *(((status, {}, b""), f"cannot be fetched (HTTP {status} ") for status in (403, 404, 410)),
    ((200, {}, ANOTHER), f"has the SHA-256 {hashlib.sha256(ANOTHER).hexdigest()}, "),
    *((redirect(target), "which is not https") for target in ELSEWHERE),
    (redirect("file:///etc/hostname"), "not allowed"),
    *((redirect(target), "cannot be fetched (") for target in ("https://a..b/x", "https://[::1/x")),
]


@pytest.mark.parametrize(("answer", "told"), NOT_ASKED_AGAIN)
def test_what_is_not_there_or_wrong_is_not_asked_for_again(
    answer: tuple[int, dict[str, str], bytes], told: str, server: Server
) -> None:
    server.answers = [answer]
    assert told in refused(server.url)
    assert server.requests == 1 and not kept()


@pytest.mark.parametrize(
    "answer", [GOOD, LENGTH_UNSAID, (200, {"Content-Length": "99999999999"}, BODY)]
)
def test_a_file_too_large_is_refused_at_once(
    answer: tuple[int, dict[str, str], bytes], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "MOST_BYTES", len(BODY) - 1)
    server.answers = [answer]
    assert "more than 197,999 bytes" in refused(server.url)
    assert server.requests == 1 and not kept()


def test_redirects_are_not_followed_for_ever(server: Server) -> None:
    server.answers = [redirect("/here")]
    assert "cannot be fetched (HTTP 302 " in refused(server.url)
    assert server.requests < 20


def test_a_server_that_is_silent_times_out(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "TIMEOUT", 0.05)
    server.answers = [(200, {"Content-Length": "10"}, b"")]
    monkeypatch.setattr(Handler, "wbufsize", -1)  # keeps even the headers back
    monkeypatch.setattr(Handler, "finish", lambda self: threading.Event().wait(0.2))
    assert "timed out" in refused(server.url)
    assert server.requests == 4


def test_without_a_network_the_message_names_url_place_and_checksum(server: Server) -> None:
    server.server_close()
    assert "Connection refused" in (message := refused(server.url))
    assert all(part in message for part in (KEY, server.url, str(Path.cwd() / FETCHED / SHA)))
    message = refused(server.url, None)
    assert f"{Path.cwd() / FETCHED}/" in message and f"{KEY}.sha256" in message


def test_without_a_checksum_the_line_for_the_parameters_is_given_and_nothing_trusted(
    server: Server,
) -> None:
    for _ in range(2):
        assert refused(server.url, None).endswith(f"put into params.yaml: sha256: {SHA}")
    assert server.requests == 2
    assert fetched_file(source(server.url), KEY).read_bytes() == BODY, "what was kept, now pinned"
    assert server.requests == 2


def test_a_folder_that_cannot_be_written_is_named(server: Server) -> None:
    FETCHED.parent.mkdir(parents=True)
    FETCHED.write_text("a file where the folder should be")
    assert refused(server.url).startswith(f"{FETCHED / SHA}: ")
