"""A plan as text for a terminal: aligned columns, one per task."""

from collections.abc import Iterable, Sequence

from star.plan.result import Memory, Plan, TaskPlan

GIB, PETA = 2**30, 10**15
PASSES = {
    "sequences forward: rollout": "rollout",
    "forward and backward: update": "update",
    "forward: base model": "reference",
    "forward: held-out curve": "held_out",
    "forward: one evaluation": "evaluation",
}
OPERATIONS = {
    "rollout": "rollout",
    "update, base model": "update",
    "held-out curve": "held_out",
    "one evaluation": "evaluation",
}
COUNTED = (
    "operations: two for each multiply-add of transformer and VAE decoder; "
    "not of text encoders and rewards"
)
ESTIMATED = (
    "summed over tensors: leave room for fragments, kernels' scratch and, on a GPU, its context"
)


def show(plan: Plan) -> str:
    """Return the whole text."""
    processes, tasks = plan.counts.processes, list(plan.tasks.values())
    lines = [f"{plan.model} on {processes} {'process' if processes == 1 else 'processes'}", ""]
    lines += [*_aligned(_counts(plan), remarks=True), ""]
    lines += [*_aligned([["one training", *plan.tasks], *_work(tasks)]), COUNTED]
    memories = {name: task.memory for name, task in plan.tasks.items()}
    memories["one evaluation"] = plan.evaluation
    if known := {name: memory for name, memory in memories.items() if memory is not None}:
        head = ["GiB of a GPU" if plan.device == "cuda" else "GiB of a process", *known]
        lines += ["", *_aligned([head, *_memory(list(known.values()))]), ESTIMATED]
    if plan.host is not None:
        host, every = f"{plan.host / GIB:,.0f}", f"{plan.host * processes / GIB:,.0f}"
        together = f", {every} for {processes} on one machine" if processes > 1 else ""
        opened = "a process, which opens the whole pipeline there first"
        lines += ["", f"GiB of host memory: {host} {opened}{together}"]
    return "\n".join([*lines, *(f"note: {note}" for note in plan.notes)])


def _counts(plan: Plan) -> list[list[str]]:
    counts = plan.counts
    own = f"{counts.batches_per_process:,} per process"
    accumulated = f"{counts.accumulation:,} per process, whose gradients are accumulated"
    trained = "; ".join(f"{number} x {task}" for task, number in plan.trainings.items())
    rows: list[tuple[str, int, str]] = [
        ("images per epoch", counts.images_per_epoch, f"{counts.groups:,} groups"),
        ("rollout batches per epoch", counts.batches_per_epoch, own),
        ("rollout batches per update", counts.batches_per_update, accumulated),
        ("updates", counts.updates, f"{counts.updates_per_epoch:,} per epoch"),
        ("images", counts.images, f"{trained} trained"),
    ]
    if plan.tokens is not None:
        image, text = plan.tokens
        rows.append(("tokens of a sequence", image + text, f"{image:,} image, {text:,} text"))
    return [[name, f"{number:,}", remark] for name, number, remark in rows]


def _work(tasks: Sequence[TaskPlan]) -> list[list[str]]:
    rows = [
        [label, *(f"{getattr(task.passes, name):,}" for task in tasks)]
        for label, name in PASSES.items()
    ]
    if operations := [task.operations for task in tasks if task.operations]:
        rows += [
            _row(f"10^15 operations: {label}", (getattr(o, name) for o in operations), PETA)
            for label, name in OPERATIONS.items()
        ]
    if hours := [task.hours for task in tasks if task.hours]:
        for name in hours[0]:
            one = " by one process" if name == "evaluation" else ""
            label = f"hours: {name.replace('_', '-')}{one}"
            rows.append(_row(label, (taken[name] for taken in hours)))
    if caches := [task.prompt_cache for task in tasks if task.prompt_cache]:
        rows.append(_row("GB on disk: prompt cache", caches, 1e9))
    return rows


def _memory(memories: Sequence[Memory]) -> list[list[str]]:
    values: dict[str, list[int | None]] = {}
    for part in dict.fromkeys(part for memory in memories for part in memory.resident):
        values[part] = [memory.resident.get(part, 0) for memory in memories]
    values["trajectories of an epoch"] = [memory.trajectories for memory in memories]
    for phase in dict.fromkeys(phase for memory in memories for phase in memory.phases):
        values[f"phase: {phase}"] = [memory.phases.get(phase, 0) for memory in memories]
    for way in memories[0].alternatives:
        values[f"of which {way}"] = [memory.alternatives.get(way) for memory in memories]
    values["total at the peak"] = [memory.total for memory in memories]
    rows = [_row(name, row, GIB) for name, row in values.items()]
    return [*rows, ["peak phase", *(memory.peak for memory in memories)]]


def _row(name: str, values: Iterable[float | None], unit: float = 1) -> list[str]:
    """Write numbers with two decimals, or with two digits what is smaller."""

    def written(value: float) -> str:
        return f"{value:,.2f}" if value >= 0.1 or value == 0 else f"{value:.2g}"

    return [name, *("-" if value is None else written(value / unit) for value in values)]


def _aligned(rows: Sequence[list[str]], remarks: bool = False) -> list[str]:
    """Write names to the left, figures to the right; with ``remarks`` the last column is text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = ["<", *">" * (len(widths) - 1)]
    if remarks:
        sides[-1] = "<"
    return [
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
