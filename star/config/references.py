"""The methods with which the study compares one of its methods, found by their keys.

Methods that agree in rate, `train` and `forward` are a family: they spread an advantage
differently, and differ in nothing else."""

import dataclasses

from star.config.params import AllocationParams, Params

FIRST = "flow_grpo"  # what all methods are compared with


def uniform_form(params: Params, name: str) -> str | None:
    """Return the first method of a study method's family without maps; None if it is that one."""
    for other, allocation in _family(params, name).items():
        if allocation.source == "uniform":
            return None if other == name else other
    return None


def shuffled_control(params: Params, name: str) -> str | None:
    """Return the method that differs from a study method in its shuffled maps alone.

    Or else the family's with no other key of `allocation`; None for a method without maps, and for
    a control itself."""
    family = _family(params, name)
    if family[name].source in ("uniform", "shuffled"):
        return None
    for like in (family[name], params.allocation):
        wanted = dataclasses.replace(like, source="shuffled")
        for other, allocation in family.items():
            if allocation == wanted:
                return other
    return None


def _family(params: Params, name: str) -> dict[str, AllocationParams]:
    """Return the allocations of the methods of a study method's family, by their names."""
    changed = {other: params.of_study(other) for other in params.study.methods}
    own = changed[name]
    return {
        other: method.allocation
        for other, method in changed.items()
        if (method.train, method.forward) == (own.train, own.forward)
    }
