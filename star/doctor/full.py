"""`star doctor --full`: checks and measures a model with random weights on the device that is here.

About ten minutes on a card, one page of text, and one JSON file. On the CPU the same code runs the
miniature in a minute; what it takes there says nothing of a card.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from star.doctor.correctness import (
    check_adapter,
    check_gradients,
    check_kernel,
    check_maps,
    check_ratios,
)
from star.doctor.cost import check_memory, check_settings, check_share, check_speed
from star.doctor.findings import Finding, Result
from star.doctor.forecast import check_presets
from star.doctor.measure import machine
from star.doctor.reward_models import check_rewards
from star.doctor.subject import Subject
from star.system.errors import StarError, cut
from star.system.files import write_text_atomic

# Each takes the subject and the figures of those before it, by name.
CHECKS: dict[str, Callable[[Subject, dict], Result]] = {
    "attention": check_kernel,
    "maps": check_maps,
    "adapter": check_adapter,
    "ratios": check_ratios,
    "gradients": check_gradients,
    "memory": check_memory,
    "speed": check_speed,
    "settings": check_settings,
    "share": check_share,
    "rewards": check_rewards,
    "presets": check_presets,
}


def examine(params_file: Path, output: Path | None) -> Iterator[Finding]:
    """Run all checks; a check that breaks is a line, and the others go on.

    Args:
        output: JSON file of all figures.

    Raises:
        StarError: the model does not open, or the file cannot be written.
    """
    begun = time.monotonic()
    subject = Subject(params_file)
    yield Finding("machine", machine())
    yield Finding("model", f"{subject.name}, {subject.params.model.precision}")
    found: dict[str, Any] = {}
    for name, check in CHECKS.items():
        try:
            findings, found[name] = check(subject, found)
        except (StarError, RuntimeError, ArithmeticError, LookupError) as error:
            reason = cut(" ".join(f"{type(error).__name__}: {error}".split()), 200)
            findings, found[name] = [Finding(name, "broke", reason)], {"failed": reason}
        subject.forget()
        yield from findings
    taken = time.monotonic() - begun
    if output is not None:
        about = {
            "machine": machine(),
            "model": subject.name,
            "precision": subject.params.model.precision,
            "images": subject.sizes.images,
            "steps": subject.sizes.steps,
            "seconds": round(taken, 1),
        }
        write_text_atomic(output, json.dumps(about | found, indent=1) + "\n")
    yield Finding("took", f"{taken / 60:.1f} minutes")
