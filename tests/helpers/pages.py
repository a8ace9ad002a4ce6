"""Reads an HTML page as a test wants it."""

import base64
from html.parser import HTMLParser

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


def decoded(uri: str) -> bytes:
    return base64.b64decode(uri.split("base64,", 1)[1])
