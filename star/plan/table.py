"""A plan as text for a terminal: aligned columns, one a task; images, 10^15 operations, hours and
GiB."""

from collections.abc import Sequence

from star.plan.result import Memory, Plan, TaskPlan

GIB = 2**30
COUNTED = "operations: two for each multiply-add of transformer and VAE decoder; not of text encoders and rewards"
ESTIMATED = (
    "summed over tensors: leave room for fragments, kernels' scratch and, on a GPU, its context"
)


def show(plan: Plan) -> str:
    """The whole text."""
    counts, tasks = plan.counts, list(plan.tasks.values())
    lines = [
        f"{plan.model} on {counts.processes} {'process' if counts.processes == 1 else 'processes'}",
        "",
    ]
    lines += _aligned(_counts(plan), remarks=True)
    lines += ["", *_aligned([["one training", *plan.tasks], *_work(tasks)]), COUNTED]
    memories = [task.memory for task in tasks if task.memory is not None]
    if memories:
        device = "GPU" if plan.device == "cuda" else "process"
        heads = [f"GiB of a {device}", *plan.tasks]
        if plan.evaluation is not None:
            memories, heads = [*memories, plan.evaluation], [*heads, "one evaluation"]
        lines += ["", *_aligned([heads, *_memory(memories)]), ESTIMATED]
    if plan.host is not None:
        lines += ["", _host(plan.host, counts.processes)]
    return "\n".join([*lines, *(f"note: {note}" for note in plan.notes)])


def _host(host: int, processes: int) -> str:
    together = (
        f", {host * processes / GIB:,.0f} for {processes} on one machine" if processes > 1 else ""
    )
    return f"GiB of host memory: {host / GIB:,.0f} a process, which opens the whole pipeline there first{together}"


def _counts(plan: Plan) -> list[list[str]]:
    counts = plan.counts
    rows = [
        ["images an epoch", f"{counts.images_per_epoch:,}", f"{counts.groups:,} groups"],
        [
            "rollout batches an epoch",
            f"{counts.batches_per_epoch:,}",
            f"{counts.batches_per_process:,} a process",
        ],
        [
            "rollout batches an update",
            f"{counts.batches_per_update:,}",
            f"{counts.accumulation:,} a process, whose gradients are accumulated",
        ],
        ["updates", f"{counts.updates:,}", f"{counts.updates_per_epoch:,} an epoch"],
        [
            "images",
            f"{counts.images:,}",
            "; ".join(f"{n} x {task}" for task, n in plan.trainings.items()) + " trained",
        ],
    ]
    if plan.tokens is not None:
        rows.append(
            [
                "tokens of a sequence",
                f"{sum(plan.tokens):,}",
                "{:,} image, {:,} text".format(*plan.tokens),
            ]
        )
    return rows


def _work(tasks: Sequence[TaskPlan]) -> list[list[str]]:
    rows = [
        ["sequences forward: rollout", *(f"{t.passes.rollout:,}" for t in tasks)],
        ["forward and backward: update", *(f"{t.passes.update:,}" for t in tasks)],
        ["forward: KL reference", *(f"{t.passes.reference:,}" for t in tasks)],
        ["forward: one evaluation", *(f"{t.passes.evaluation:,}" for t in tasks)],
    ]
    operations = [t.operations for t in tasks if t.operations is not None]
    if operations:
        rows.append(["10^15 operations: rollout", *(_short(o.rollout / 1e15) for o in operations)])
        rows.append(
            ["10^15 operations: update, KL", *(_short(o.update / 1e15) for o in operations)]
        )
        rows.append(
            ["10^15 operations: one evaluation", *(_short(o.evaluation / 1e15) for o in operations)]
        )
    hours = [t.hours for t in tasks if t.hours is not None]
    for name in hours[0] if hours else ():
        label = f"hours: {name}" + (" by one process" if name == "evaluation" else "")
        rows.append([label, *(_short(h[name]) for h in hours)])
    caches = [t.prompt_cache for t in tasks if t.prompt_cache is not None]
    if caches:
        rows.append(["GB on disk: prompt cache", *(_short(cache / 1e9) for cache in caches)])
    return rows


def _memory(memories: Sequence[Memory]) -> list[list[str]]:
    def row(name: str, values: Sequence[int]) -> list[str]:
        return [name, *(_short(value / GIB) for value in values)]

    rows = [row(name, [m.resident.get(name, 0) for m in memories]) for name in memories[0].resident]
    rows.append(row("trajectories of an epoch", [m.trajectories for m in memories]))
    for name in dict.fromkeys(name for m in memories for name in m.phases):
        rows.append(row(f"phase: {name}", [m.phases.get(name, 0) for m in memories]))
    for name in memories[0].alternatives:
        values = [
            _short(m.alternatives[name] / GIB) if name in m.alternatives else "-" for m in memories
        ]
        rows.append([f"of which {name}", *values])
    rows.append(row("total at the peak", [m.total for m in memories]))
    rows.append(["peak phase", *(m.peak for m in memories)])
    return rows


def _short(value: float) -> str:
    """Two decimals, or two digits of what is smaller."""
    return f"{value:,.2f}" if value >= 0.1 or value == 0 else f"{value:.2g}"


def _aligned(rows: Sequence[list[str]], remarks: bool = False) -> list[str]:
    """Names to the left, figures to the right; with ``remarks`` the last column is text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = "<" + ">" * (len(widths) - 2 if remarks else len(widths) - 1) + ("<" if remarks else "")
    return [
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
