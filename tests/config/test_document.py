"""The documentation of the parameters is what their fields say."""

from pathlib import Path

from star.config.document import PAGE, page

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_what_the_fields_say() -> None:
    told = "run `python -m star.config.document` and commit docs/parameters.md"
    assert (ROOT / PAGE).read_text(encoding="utf-8") == page(ROOT / "params.yaml"), told
