"""Midjourney's parameters (`--ar 16:9 --v 5`), with which captions of that service end."""

import re

# A name and its value. A word processor makes — of two hyphens; what follows it may be prose.
_FLAGS = re.compile(
    r"(?<!\S)(?:[—–][a-z]+\s*\d[\d.:x]*|--(?:"
    r"no\s+.*?(?=\s--[a-z]|$)|(?:style|sref|cref|profile|p)\s+[^\s,]+"
    r"|[a-z]+\s*\d[\d.:x]*|[a-z]+(?![\w-])))",
    re.IGNORECASE,
)


def without_flags(prompt: str) -> str:
    """Return the prompt with blanks in place of flags, as long as before."""
    return _FLAGS.sub(lambda flag: " " * len(flag[0]), prompt)
