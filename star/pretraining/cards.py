"""Model cards, whose texts are the templates ``*.j2`` next to this module."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render_card(template: str, **facts: Any) -> str:
    """Return the text of a card; a fact that the template names and nobody gives is an error."""
    environment = Environment(
        loader=PackageLoader("star.pretraining", ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(facts)
