"""What each preset takes here: `star plan`'s operations at the rates that were measured."""

from pathlib import Path

from star.config.params import Params
from star.config.reading import load_params
from star.doctor.cost import costs_of
from star.doctor.findings import Finding, Result
from star.doctor.subject import Subject
from star.plan.operations import Costs, count_operations

HOUR = 3600.0


def check_presets(subject: Subject, found: dict) -> Result:
    """Say the images/s of each preset with this model, and the hours of a process on this device.

    Counted are rollout, update, held-out curve, evaluations, and the detector, which no rollout
    hides. Not counted: readers, judges, sample grids, saved states, and waiting for others.
    """
    files = dict.fromkeys([subject.file, *sorted(Path("presets").glob("*.yaml"))])
    known: dict[tuple, Costs] = {}
    findings, figures, others = [], {}, 0
    for file in files:
        params = load_params(file)
        if params.model.path != subject.params.model.path:
            others += 1
            continue
        model = params.model
        key = model.resolution, model.t5_tokens, model.lora_rank, model.gradient_checkpointing
        costs = known[key] = known.get(key) or costs_of(params)
        figures[file.stem] = facts = forecast(params, costs, found)
        value = (
            f"{file.stem}: {facts['images_per_s']:.3g} images/s a process, "
            f"{facts['training_hours']:.3g} hours a training, {facts['hours']:.3g} with all of "
            "`runs` and their evaluations"
        )
        findings.append(Finding("preset", value))
    if others:
        mend = "measure it where it runs" if subject.device.type == "cpu" else "too small for this"
        value = f"{others} presets are of another model"
        findings.append(Finding("preset", value, mend, needed=False))
    return findings, figures


def forecast(params: Params, costs: Costs, found: dict) -> dict[str, float]:
    """Return images/s of the slowest training, and hours, of one process.

    Args:
        found: the figures of the checks ``speed`` and ``rewards``.

    Raises:
        KeyError: an algorithm of the parameters was not measured.
    """
    speed, drawing = found["speed"], found["speed"]["evaluation"]["operations_per_s"]
    total, slowest, longest = 0.0, float("inf"), 0.0
    trainings = 0
    for task, methods in params.runs.items():
        for name in methods:
            method = params.with_method(name)
            rates = speed[method.train.algorithm]["operations_per_s"]
            operations = count_operations(method, costs)
            images = method.images_per_epoch * method.train.epochs
            taken = operations.rollout / rates["rollout"] + operations.update / rates["update"]
            taken += images / found["rewards"]["detector"] if task == "geneval" else 0
            slowest = min(slowest, images / taken)
            taken += operations.held_out / drawing
            longest, total, trainings = max(longest, taken), total + taken, trainings + 1
    evaluation = count_operations(params, costs).evaluation / drawing
    return {
        "images_per_s": slowest,
        "training_hours": longest / HOUR,
        "evaluation_hours": evaluation / HOUR,
        "hours": (total + (trainings + 1) * evaluation) / HOUR,
    }
