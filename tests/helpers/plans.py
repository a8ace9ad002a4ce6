"""Models on the meta device that are built once, and estimates of them."""

from functools import cache

from star.config.params import ModelParams, Params
from star.plan import costliest
from star.plan.configs import pipeline_configs
from star.plan.memory import MemoryEstimate
from star.plan.models import Pipeline, build_pipeline
from star.plan.operations import Costs, count_costs
from star.plan.result import Memory
from star.plan.reward_models import Scorer

_pipelines: dict[tuple[str, int], Pipeline] = {}


def pipeline(model: ModelParams) -> Pipeline:
    key = model.path, model.lora_rank
    if key not in _pipelines:
        _pipelines[key] = build_pipeline(pipeline_configs(model.path), model)
    return _pipelines[key]


@cache
def costs(model: ModelParams) -> Costs:
    return count_costs(pipeline(model), model, fused=True)


def estimate(params: Params, device: str = "cuda") -> MemoryEstimate:
    return MemoryEstimate(params, pipeline(params.model), device)


def memory(params: Params, task: str = "ocr", processes: int = 1) -> Memory:
    """Return the memory of a training on a GPU, without a reward model."""
    method = costliest(params, task)
    return estimate(params).training(task, method, Scorer(0, 0), processes)
