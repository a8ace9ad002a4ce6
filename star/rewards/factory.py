"""The reward of a task, ready to use."""

from star.params import RewardsParams
from star.rewards.base import Reward


def build_reward(task: str, params: RewardsParams) -> Reward:
    """The reward of one of the three tasks; models and worker processes start here."""
    if task == "geneval":
        from star.rewards.geneval import GenevalReward, build_detector

        return GenevalReward(build_detector(params.geneval.detector), params.geneval)
    if task == "ocr":
        from star.rewards.ocr import OcrReward

        return OcrReward(params.ocr)
    if task == "preference":
        from star.rewards.preference import PreferenceReward

        return PreferenceReward(params.preference)
    raise ValueError(f"no reward for task {task!r}")
