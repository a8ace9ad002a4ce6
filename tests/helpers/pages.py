"""Reads an HTML page as a test wants it."""

import base64
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

EVIL = '<script>document.documentElement.dataset.ran = "1"</script> & <b>'


class Outline(HTMLParser):
    """Checks that tags balance; collects elements, addresses and text."""

    void = {"meta", "img", "br"}

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [
            value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")
        ]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += f"{data} "


def words_of(page: Path) -> str:
    """The text of a page, one space between words."""
    return re.sub(r"\s+", " ", Outline(page.read_text(encoding="utf-8")).text)


def decoded(uri: str) -> bytes:
    return base64.b64decode(uri.split("base64,", 1)[1])


def opened(browser: str, page: Path) -> str:
    """The document of a page after its scripts, if any, have run in a browser."""
    profile = f"--user-data-dir={page.parent / 'profile'}"
    options = ("--headless", "--no-sandbox", "--disable-gpu", profile, "--dump-dom")
    command = [browser, *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
