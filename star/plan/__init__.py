"""What a parameter file asks for, before anything runs: arithmetic, operations and memory.

No model is loaded, and torch is not imported.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from star.config.params import TASKS, AllocationParams, Params
from star.plan.counts import Counts, Passes, count, count_passes
from star.plan.memory import (
    Memory,
    drawn_prompts,
    estimate,
    estimate_evaluation,
    host_memory,
    is_fused,
    prompt_bytes,
)
from star.plan.operations import Operations, count_operations
from star.plan.scorers import read_scorer
from star.plan.shapes import read_pipeline


@dataclass(frozen=True)
class TaskPlan:
    """One training of a task, by the costliest of its methods. Operations and memory are None where
    nothing says how large the model is. hours: of rollout and update on each process, and of one
    evaluation on one; None without a rate. prompt_cache: bytes that its prompts take in
    `model.prompt_cache`, on disk; None without one."""

    passes: Passes
    operations: Operations | None
    memory: Memory | None
    hours: dict[str, float] | None
    prompt_cache: int | None = None


@dataclass(frozen=True)
class Plan:
    """tokens: of a sequence, image and text; None where nothing says so. evaluation: memory of a
    process that evaluates a checkpoint; host: bytes of host memory that a process beside a GPU
    takes. notes: what could not be told."""

    model: str
    device: str
    counts: Counts
    trainings: dict[str, int]
    tokens: tuple[int, int] | None
    tasks: dict[str, TaskPlan]
    notes: list[str]
    evaluation: Memory | None = None
    host: int | None = None


def make_plan(
    params: Params,
    tasks: Sequence[str],
    processes: int = 1,
    device: str = "cuda",
    tflops: float | None = None,
) -> Plan:
    """What the parameters ask of ``processes`` that train together.

    Args:
        device: ``cuda`` or ``cpu``.
        tflops: what a device achieves, in 10^12 operations/s.

    Raises:
        StarError: processes that cannot share the batches, or config files that cannot be read.
    """
    counts, pipeline = count(params, processes), read_pipeline(params.model.path)
    trainings = {task: len(params.runs[task]) for task in tasks}
    if pipeline is None:
        planned = {
            task: TaskPlan(count_passes(params, costliest(params, task)), None, None, None)
            for task in tasks
        }
        note = f"operations and memory are unknown without the files of {params.model.path}: give a pipeline directory"
        return Plan(params.model.path, device, counts, trainings, None, planned, [note])
    tokens = (
        pipeline.image_tokens(params.model.resolution),
        pipeline.clip_tokens + params.model.t5_tokens,
    )
    notes, planned = [], {}
    for task in tasks:
        allocation = costliest(params, task)
        scorer = read_scorer(params, task)
        notes += [f"the memory of {path} is unknown and not counted" for path in scorer.unknown]
        operations = count_operations(params, allocation, pipeline, is_fused(device, sum(tokens)))
        planned[task] = TaskPlan(
            count_passes(params, allocation),
            operations,
            estimate(params, task, allocation, pipeline, scorer, processes, device),
            None if tflops is None else hours(operations, processes, tflops),
            drawn_prompts(params, task) * prompt_bytes(params, pipeline, device)
            if params.model.prompt_cache
            else None,
        )
    tested = replace(params, rollout=replace(params.rollout, batch=params.evaluate.batch))
    scorers = {task: read_scorer(tested, task) for task in TASKS}
    evaluation = estimate_evaluation(params, pipeline, scorers, device)
    unknown = (path for scorer in scorers.values() for path in scorer.unknown)
    notes += [f"the memory of {path} is unknown and not counted" for path in unknown]
    host = host_memory(params, pipeline) if device == "cuda" else None
    notes = list(dict.fromkeys(notes))
    return Plan(
        params.model.path, device, counts, trainings, tokens, planned, notes, evaluation, host
    )


def hours(operations: Operations, processes: int, tflops: float) -> dict[str, float]:
    """At a rate of ``tflops`` on each process; one evaluates."""
    hour = tflops * 1e12 * 3600
    training = {"rollout": operations.rollout, "update": operations.update}
    return {name: work / hour / processes for name, work in training.items()} | {
        "evaluation": operations.evaluation / hour
    }


def costliest(params: Params, task: str) -> AllocationParams:
    """Of the task's methods the one that takes most: by passes, then with maps. Without runs,
    `allocation` itself."""
    methods = [params.method(name) for name in params.runs[task]] or [params.allocation]
    return max(
        methods,
        key=lambda m: (count_passes(params, m).rollout, m.source != "uniform" and m.lam > 0),
    )


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan's fields, sizes in bytes, with the peak of each task's and the evaluation's memory
    and its total."""
    values = asdict(plan)
    for name, task in plan.tasks.items():
        if task.memory is not None:
            values["tasks"][name]["memory"] |= {
                "peak": task.memory.peak,
                "total": task.memory.total,
            }
    if plan.evaluation is not None:
        values["evaluation"] |= {"peak": plan.evaluation.peak, "total": plan.evaluation.total}
    return values
