"""What `make_plan` returns: sizes in bytes, operations as additions and multiplications."""

from dataclasses import asdict, dataclass
from typing import Any

from star.plan.counts import Counts, Passes


@dataclass(frozen=True)
class Operations:
    """Operations of one training, all processes together, and of one checkpoint's evaluation."""

    rollout: int
    update: int
    evaluation: int
    held_out: int


@dataclass(frozen=True)
class Memory:
    """Bytes of one process on its device."""

    resident: dict[str, int]  # what stays, by part
    trajectories: int  # what an epoch's rollouts keep for its updates
    phases: dict[str, int]  # what each adds at its highest, trajectories included
    alternatives: dict[str, int]  # of decoding and update, by the settings for them

    @property
    def peak(self) -> str:
        """Return the name of the phase with the most."""
        return max(self.phases, key=lambda name: self.phases[name])

    @property
    def total(self) -> int:
        return sum(self.resident.values()) + self.phases[self.peak]


@dataclass(frozen=True)
class TaskPlan:
    """One training of a task, by the costliest of its methods; None is what is not known."""

    passes: Passes
    operations: Operations | None = None
    memory: Memory | None = None
    hours: dict[str, float] | None = None  # on each process; of an evaluation, on one
    prompt_cache: int | None = None  # bytes on disk of its prompts in `model.prompt_cache`


@dataclass(frozen=True)
class Plan:
    """All that a parameter file asks for; None is what is not known."""

    model: str
    device: str
    counts: Counts
    trainings: dict[str, int]  # how many, by task
    tokens: tuple[int, int] | None  # image and text tokens of a sequence
    tasks: dict[str, TaskPlan]
    notes: list[str]  # what could not be told, and what is true of some methods alone
    evaluation: Memory | None = None  # of a process that evaluates a checkpoint
    host: int | None = None  # bytes of host memory of a process with a GPU


def as_json(plan: Plan) -> dict[str, Any]:
    """Return the plan's fields; each memory also has its ``peak`` phase and ``total`` bytes."""
    values = asdict(plan)
    found = [(values["tasks"][name]["memory"], task.memory) for name, task in plan.tasks.items()]
    for fields, memory in [*found, (values["evaluation"], plan.evaluation)]:
        if memory is not None:
            fields |= {"peak": memory.peak, "total": memory.total}
    return values
