"""What a parameter file asks for, before anything runs: arithmetic, operations and memory.

Models are built on the meta device, without weights. Bad input is refused before torch is imported.
"""

from collections.abc import Iterator, Sequence

from star.config.params import TASKS, Params
from star.plan.configs import pipeline_configs, reward_configs
from star.plan.counts import Counts, count, count_passes
from star.plan.result import Operations, Plan, TaskPlan
from star.system.runtime import quick_imports


def make_plan(
    params: Params,
    tasks: Sequence[str],
    processes: int = 1,
    device: str = "cuda",
    tflops: float | None = None,
) -> Plan:
    """Return what the parameters ask of ``processes`` that train together.

    Args:
        device: ``cuda`` or ``cpu``.
        tflops: what a device achieves, in 10^12 operations/s.

    Raises:
        StarError: processes that cannot share the batches, or config files that cannot be read.
    """
    path, counts = params.model.path, count(params, processes)
    trainings = {task: len(params.runs[task]) for task in tasks}
    methods = {task: costliest(params, task) for task in tasks}
    configs = pipeline_configs(path)
    if configs is None:
        arithmetic = {task: TaskPlan(count_passes(methods[task])) for task in tasks}
        note = "operations and memory are unknown without the files of"
        notes = [f"{note} {path}: give a pipeline directory", *lengths(params, tasks, counts)]
        return Plan(path, device, counts, trainings, None, arithmetic, notes)
    rewards = {task: reward_configs(params.rewards, task) for task in TASKS}
    with quick_imports():
        from star.plan.memory import MemoryEstimate, drawn_prompts
        from star.plan.models import build_pipeline, build_reward_model, on_meta
        from star.plan.operations import count_costs, count_operations
        from star.plan.reward_models import read_scorer

    pipeline = build_pipeline(configs, params.model)
    with on_meta(path):
        estimate = MemoryEstimate(params, pipeline, device)
        costs = count_costs(pipeline, params.model, estimate.sequence.fused)
    known = {name: c for task in TASKS for name, c in rewards[task].items() if c is not None}
    built = {name: build_reward_model(config, name) for name, config in known.items()}
    models = {task: {n: built[n] for n in rewards[task] if n in built} for task in TASKS}
    planned = {}
    for task, method in methods.items():
        operations = count_operations(method, costs)
        scorer = read_scorer(params.rewards, models[task], params.rollout.batch)
        planned[task] = TaskPlan(
            count_passes(method),
            operations,
            estimate.training(task, method, scorer, processes),
            None if tflops is None else hours(operations, processes, tflops),
            drawn_prompts(params, task) * estimate.prompt if params.model.prompt_cache else None,
        )
    batch = params.evaluate.batch
    tested = {task: read_scorer(params.rewards, models[task], batch) for task in TASKS}
    unknown = [n for task in (*tasks, *TASKS) for n in rewards[task] if n not in built]
    notes = [f"the memory of {name} is unknown and not counted" for name in dict.fromkeys(unknown)]
    return Plan(
        path,
        device,
        counts,
        trainings,
        pipeline.tokens(params.model),
        planned,
        [*notes, *lengths(params, tasks, counts)],
        estimate.evaluation(tested),
        estimate.host() if device == "cuda" else None,
    )


def lengths(params: Params, tasks: Sequence[str], counts: Counts) -> Iterator[str]:
    """Yield the size of a training by each method of ``runs`` that differs from ``counts``."""
    for name in dict.fromkeys(name for task in tasks for name in params.runs[task]):
        own = count(params.with_method(name), counts.processes)
        if (own.images, own.updates) != (counts.images, counts.updates):
            yield f"{name} trains on {own.images:,} images in {own.updates:,} updates"


def hours(operations: Operations, processes: int, tflops: float) -> dict[str, float]:
    """Return the hours of each part at ``tflops`` on each process; one process evaluates."""
    hour = tflops * 1e12 * 3600
    return {
        "rollout": operations.rollout / hour / processes,
        "update": operations.update / hour / processes,
        "held_out": operations.held_out / hour / processes,
        "evaluation": operations.evaluation / hour,
    }


def costliest(params: Params, task: str) -> Params:
    """Return the parameters of the task's method that takes most: by passes, then with maps.

    Forward and backward count as three. Without runs it is the parameters themselves.
    """

    def cost(method: Params) -> tuple[int, bool]:
        passes = count_passes(method)
        work = passes.rollout + passes.reference + 3 * passes.update
        return work, method.allocation.uses_maps

    methods = [params.with_method(name) for name in params.runs[task]]
    return max(methods or [params], key=cost)
