"""What the three pages share: one Jinja environment and the form of numbers.

A page loads nothing: style and charts are inline, images are data URIs, and its content security
policy forbids the rest. Every text that comes from prompts, parameters or file names is escaped
(Jinja's autoescape; `svg` escapes its own)."""

import math
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from star.evaluation.statistics import Interval
from star.report.images import embedder
from star.report.svg import color_class

TEMPLATES = PackageLoader("star", "")


def render(template: str, names: Mapping[str, str], shown: int = 0, **values: object) -> str:
    """Return a page as text.

    Args:
        template: its file below ``star/``.
        names: of the tasks.
        shown: number of the page's images, which share its budget of bytes.
        values: what the template needs.
    """
    made = environment(names, autoescape=True)
    made.filters["embed"] = embedder(shown)
    made.globals["sheet"] = lambda name: Markup(TEMPLATES.get_source(made, name)[0])
    return made.get_template(template).render(values)


def environment(names: Mapping[str, str], **options: Any) -> Environment:
    """Return what renders the templates of ``star/``, with the filters that they use."""
    made = Environment(
        loader=TEMPLATES,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
    made.filters.update(
        number=number,
        interval=interval,
        verdict=verdict,
        times=times,
        color=color_class,
        task=lambda name: names[name],
        svg=Markup,  # only ever applied to the output of `svg`, which escapes its texts
    )
    made.tests["infinite"] = math.isinf
    return made


def number(value: float, signed: bool = False) -> str:
    """Write three decimals below ten, two above, with a true minus sign."""
    text = f"{value:{'+' if signed else ''}.{3 if abs(value) < 9.9995 else 2}f}"
    return text.replace("-", "\u2212")


def interval(value: Interval, signed: bool = False) -> str:
    """Write ``[low, high]``; nothing where a single seed bounds nothing."""
    ends = f"[{number(value.low, signed)}, {number(value.high, signed)}]"
    return ends if math.isfinite(value.low) else ""


def times(ratio: float) -> str:
    """Write a ratio of images; an infinite one is of a level that a run did not reach."""
    return "> 1" if math.isinf(ratio) else f"{ratio:.2f}\u00d7"


def verdict(difference: Interval) -> str:
    """Return ``better``, ``worse`` or ``same``: the interval contains zero."""
    if not difference.excludes_zero:
        return "same"
    return "better" if difference.mean > 0 else "worse"
