"""What `make_plan` returns. Sizes are bytes, operations single additions and multiplications."""

from dataclasses import asdict, dataclass
from typing import Any

from star.plan.counts import Counts, Passes


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of one training, all processes together, and of the evaluation of
    one checkpoint."""

    rollout: int
    update: int
    evaluation: int


@dataclass(frozen=True)
class Memory:
    """Bytes of one process on its device.

    Attributes:
        resident: what stays, by part.
        trajectories: what an epoch's rollouts keep for its updates.
        phases: what each phase adds to the resident parts at its highest, trajectories included.
        alternatives: what decoding and update add without trajectories, with and without
            `model.vae_slicing` and `model.gradient_checkpointing`.
    """

    resident: dict[str, int]
    trajectories: int
    phases: dict[str, int]
    alternatives: dict[str, int]

    @property
    def peak(self) -> str:
        """Return the name of the phase with the most."""
        return max(self.phases, key=lambda name: self.phases[name])

    @property
    def total(self) -> int:
        """Return the bytes in use at the peak."""
        return sum(self.resident.values()) + self.phases[self.peak]


@dataclass(frozen=True)
class TaskPlan:
    """One training of a task, by the costliest of its methods.

    Attributes:
        operations, memory: None where the model's size is unknown.
        hours: of rollout and update on each process, and of one evaluation on one process; None
            without a rate.
        prompt_cache: bytes on disk of its prompts in `model.prompt_cache`; None without one.
    """

    passes: Passes
    operations: Operations | None = None
    memory: Memory | None = None
    hours: dict[str, float] | None = None
    prompt_cache: int | None = None


@dataclass(frozen=True)
class Plan:
    """All that a parameter file asks for.

    Attributes:
        trainings: how many of each task.
        tokens: image and text tokens of a sequence; None where the model's size is unknown.
        notes: what could not be told.
        evaluation: memory of a process that evaluates a checkpoint.
        host: bytes of host memory that a process beside a GPU takes.
    """

    model: str
    device: str
    counts: Counts
    trainings: dict[str, int]
    tokens: tuple[int, int] | None
    tasks: dict[str, TaskPlan]
    notes: list[str]
    evaluation: Memory | None = None
    host: int | None = None


def as_json(plan: Plan) -> dict[str, Any]:
    """Return the plan's fields; each memory also has its ``peak`` phase and ``total`` bytes."""
    values = asdict(plan)
    memories = [(values["tasks"][name], "memory", task.memory) for name, task in plan.tasks.items()]
    for holder, key, memory in [*memories, (values, "evaluation", plan.evaluation)]:
        if memory is not None:
            holder[key] |= {"peak": memory.peak, "total": memory.total}
    return values
