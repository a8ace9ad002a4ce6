"""The study's numbers: every method against the two references by task; the answer for the aim."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from star.config.params import StudyParams, StudyRun
from star.config.references import FIRST as FLOW_GRPO
from star.evaluation.statistics import Interval
from star.study.curves import LOGGED, Curve, load_curves, mean_of_known, watched
from star.study.intervals import crossing_ratio, t_interval

SHUFFLED = "shuffled"
AIM_RATIO = 0.7  # at most this share of flow_grpo's images


@dataclass(frozen=True)
class MethodResult:
    """One method on one task.

    Differences are paired by seed; a method has none to itself."""

    name: str
    control: str  # the same with its maps in the wrong places
    graded: Interval  # at the last look
    exact: Interval
    to_flow_grpo: Interval | None
    to_control: Interval | None
    images: float  # to flow_grpo's final score; inf: not reached
    ratio: Interval  # of these images to flow_grpo's; the mean is the ratio itself
    area: Interval  # mean graded score over the looks
    area_to_flow_grpo: Interval | None
    watch: dict[str, Interval]
    watch_change: dict[str, Interval]  # to base
    log: dict[str, float | None]
    minutes: float  # of one run
    curves: np.ndarray  # (seeds, looks)


@dataclass(frozen=True)
class Answer:
    """Whether the aim holds on one task."""

    method: str
    level_above_base: bool  # else the ratio says nothing
    ratio: Interval
    control: str
    to_control: Interval

    @property
    def fewer_images(self) -> bool:
        return self.level_above_base and self.ratio.mean <= AIM_RATIO

    @property
    def fewer_images_settled(self) -> bool:
        """Return whether the whole interval agrees with `fewer_images`."""
        return self.level_above_base and (
            self.ratio.high <= AIM_RATIO if self.fewer_images else self.ratio.low > AIM_RATIO
        )

    @property
    def beats_control(self) -> bool:
        return self.to_control.low > 0

    @property
    def met(self) -> bool:
        return self.fewer_images and self.beats_control


@dataclass(frozen=True)
class TaskResult:
    """One task of the study; `methods` follow the order of the parameters."""

    task: str
    held_out: int
    images: np.ndarray  # (looks,)
    base_graded: float
    base_exact: float
    base_spread: float  # greatest difference of base's graded score between runs
    base_watch: dict[str, float]
    level: float  # flow_grpo's mean final graded score
    methods: tuple[MethodResult, ...]
    answer: Answer

    def method(self, name: str) -> MethodResult:
        return next(method for method in self.methods if method.name == name)


@dataclass(frozen=True)
class Study:
    """All runs, and what they say."""

    curves: dict[StudyRun, Curve]
    tasks: tuple[TaskResult, ...]

    @property
    def hours(self) -> float:
        """Return the hours of training and looking, summed over runs."""
        return sum(curve.seconds for curve in self.curves.values()) / 3600


def load_study(
    study: StudyParams, images_per_epoch: int, resamples: int, seed: int, folder: Path
) -> Study:
    """Read and compare the runs; `StarError` for files that are missing or wrong.

    Args:
        resamples, seed: of the bootstrap over training seeds.
    """
    curves = load_curves(study, images_per_epoch, folder)
    tasks = (_compare_task(study, task, curves, resamples, seed) for task in study.tasks)
    return Study(curves, tuple(tasks))


def _compare_task(
    study: StudyParams, task: str, curves: dict[StudyRun, Curve], resamples: int, seed: int
) -> TaskResult:
    """Return all numbers of one task."""
    shared = {
        name: [curves[StudyRun(task, name, k, study.rate(name))] for k in range(study.seeds)]
        for name in study.methods
    }
    every = [curve for runs in shared.values() for curve in runs]
    graded = {name: np.stack([run.graded for run in runs]) for name, runs in shared.items()}
    finals = {name: scores[:, -1] for name, scores in graded.items()}  # (seeds,)
    areas = {name: scores.mean(axis=1) for name, scores in graded.items()}  # (seeds,)
    reference = graded[FLOW_GRPO]  # (seeds, looks)

    def result(name: str) -> MethodResult:
        ours, runs, control = graded[name], shared[name], control_of(study.methods, name)
        images, ratio = crossing_ratio(ours, reference, every[0].images, resamples, seed)
        first, last = (
            {key: np.array([run.watch[end][key] for run in runs]) for key in watched(task)}
            for end in (0, 1)
        )
        return MethodResult(
            name=name,
            control=control,
            graded=t_interval(finals[name]),
            exact=t_interval(np.array([run.exact[-1] for run in runs])),
            to_flow_grpo=_difference(finals, name, FLOW_GRPO),
            to_control=_difference(finals, name, control),
            images=images,
            ratio=ratio,
            area=t_interval(areas[name]),
            area_to_flow_grpo=_difference(areas, name, FLOW_GRPO),
            watch={key: t_interval(values) for key, values in last.items()},
            watch_change={key: t_interval(last[key] - first[key]) for key in last},
            log={key: mean_of_known([run.log[key] for run in runs]) for key in LOGGED},
            minutes=float(np.mean([run.seconds for run in runs])) / 60,
            curves=ours,
        )

    methods = {name: result(name) for name in study.methods}
    starts = [curve.graded[0] for curve in every]
    base, level, aim = float(np.mean(starts)), float(reference[:, -1].mean()), methods[study.aim]
    assert aim.to_control is not None  # the aim is neither reference: star.config.consistency
    return TaskResult(
        task=task,
        held_out=every[0].held_out,
        images=every[0].images,
        base_graded=base,
        base_exact=float(np.mean([curve.exact[0] for curve in every])),
        base_spread=float(np.ptp(starts)),
        base_watch={
            key: float(np.mean([curve.watch[0][key] for curve in every])) for key in watched(task)
        },
        level=level,
        methods=tuple(methods.values()),
        answer=Answer(aim.name, level > base, aim.ratio, aim.control, aim.to_control),
    )


def control_of(methods: Mapping[str, Mapping[str, Any]], name: str) -> str:
    """Return the method that differs from ``name`` in its shuffled maps alone; else `SHUFFLED`."""
    wanted = {**methods[name], "source": "shuffled"}
    return next((other for other, changes in methods.items() if changes == wanted), SHUFFLED)


def _difference(scores: Mapping[str, np.ndarray], name: str, other: str) -> Interval | None:
    """Return the difference of scores (seeds,) paired by seed; a method has none to itself."""
    return None if name == other else t_interval(scores[name] - scores[other])
