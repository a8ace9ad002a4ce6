"""The reward of a task, ready to use."""

from star.errors import StarError
from star.params import GenevalParams, RewardsParams
from star.rewards.base import Reward
from star.rewards.detection import Detector


def build_reward(task: str, params: RewardsParams) -> Reward:
    """The reward of one of the three tasks; models and worker processes start here."""
    if task == "geneval":
        from star.rewards.geneval import GenevalReward

        return GenevalReward(build_detector(params.geneval), params.geneval)
    if task == "ocr":
        from star.rewards.ocr import OcrReward

        return OcrReward(params.ocr, params.timeout)
    if task == "preference":
        from star.rewards.preference import PreferenceReward

        return PreferenceReward(params.preference)
    raise ValueError(f"no reward for task {task!r}")


def build_detector(params: GenevalParams) -> Detector:
    """The detector that ``rewards.geneval.detector`` names; its models are opened here.

    Raises:
        StarError: unknown name, or a model that cannot be opened.
    """
    if params.detector == "exact":
        from star.miniature.detector import ExactDetector  # only the miniature needs its glyphs

        return ExactDetector()
    if params.detector == "mask2former":
        from star.rewards.mask2former import Mask2FormerDetector

        return Mask2FormerDetector(params)
    raise StarError(f"rewards.geneval.detector: no detector {params.detector!r}; use exact or mask2former")
