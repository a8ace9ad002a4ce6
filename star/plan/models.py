"""The models that a parameter file names, built on the meta device: sizes without weights."""

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from peft import LoraConfig
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
)

from star.config.params import ModelParams
from star.method.precision import frozen_products
from star.plan.configs import Config
from star.policy.sd3 import LORA_TARGETS
from star.system.errors import StarError


@dataclass(frozen=True)
class Pipeline:
    """The parts of an SD3 pipeline."""

    transformer: SD3Transformer2DModel  # with a LoRA adapter
    vae: AutoencoderKL
    encoders: tuple[PreTrainedModel, PreTrainedModel, PreTrainedModel]  # CLIP, second CLIP, T5
    clip_tokens: int  # length of the CLIP part of the text sequence

    @property
    def adapter(self) -> int:
        """Return the number of the adapter's parameters."""
        return sum(p.numel() for p in self.transformer.parameters() if p.requires_grad)

    @property
    def frozen(self) -> int:
        """Return the number of the transformer's other parameters."""
        return parameters_of(self.transformer) - self.adapter

    @property
    def positions(self) -> int:
        """Return the numbers of the transformer's position table, as it is in the file."""
        return sum(buffer.numel() for buffer in self.transformer.buffers())

    @property
    def held(self) -> int:
        """Return how many of these are of products, and so of the compute type."""
        return parameters_of(*frozen_products(self.transformer))

    def latent(self, resolution: int) -> tuple[int, int, int]:
        """Return the channels, height and width of an image's latent."""
        side = resolution // 2 ** (len(self.vae.config.block_out_channels) - 1)
        return self.vae.config.latent_channels, side, side

    def tokens(self, model: ModelParams) -> tuple[int, int]:
        """Return the numbers of image and text tokens of a sequence."""
        side = self.latent(model.resolution)[1] // self.transformer.config.patch_size
        return side**2, self.clip_tokens + model.t5_tokens


def build_pipeline(configs: Mapping[str, Config], model: ModelParams) -> Pipeline:
    """Build a pipeline from `star.plan.configs.pipeline_configs`.

    Raises:
        StarError: values of the config files that make no model.
    """
    with on_meta(model.path):
        transformer = SD3Transformer2DModel.from_config(configs["transformer"])
        transformer.requires_grad_(False).eval()
        transformer.add_adapter(LoraConfig(r=model.lora_rank, target_modules=LORA_TARGETS))
        encoders = (
            CLIPTextModelWithProjection(CLIPTextConfig.from_dict(configs["text_encoder"])),
            CLIPTextModelWithProjection(CLIPTextConfig.from_dict(configs["text_encoder_2"])),
            T5EncoderModel(T5Config.from_dict(configs["text_encoder_3"])),
        )
        vae = AutoencoderKL.from_config(configs["vae"]).eval()
        return Pipeline(transformer, vae, encoders, int(configs["tokenizer"]["model_max_length"]))


def build_reward_model(config: Config, path: str) -> torch.nn.Module:
    """Build a Mask2Former or a CLIP model from `star.plan.configs.reward_configs`.

    Raises:
        StarError: values of the config file that make no model.
    """
    with on_meta(path):
        if "backbone_config" in config:
            return Mask2FormerForUniversalSegmentation(Mask2FormerConfig.from_dict(config))
        return CLIPModel(CLIPConfig.from_dict(config))


@contextmanager
def on_meta(path: str) -> Iterator[None]:
    """Make tensors on the meta device inside.

    Raises:
        StarError: anything fails; the config files of ``path`` make no model that runs.
    """
    try:
        with torch.device("meta"):
            yield
    except Exception as error:  # the libraries raise what comes, down to ZeroDivisionError
        reason = " ".join(str(error).split())
        raise StarError(f"{path}: its config files make no model ({reason}); fix them") from error


def parameters_of(*modules: torch.nn.Module) -> int:
    """Return the number of all parameters."""
    return sum(p.numel() for module in modules for p in module.parameters())


class LiveBytes(TorchDispatchMode):
    """Count the bytes of tensors made inside: ``now``, and ``most`` of them that lived together.

    copies: whether a convolution works on a copy of its input, as oneDNN's do on a CPU.
    """

    def __init__(self, copies: bool = False) -> None:
        super().__init__()
        self.copies, self.now, self.most = copies, 0, 0

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        given = _storages((arguments, options))
        result = function(*arguments, **(options or {}))
        made = _storages(result)
        for key in made.keys() - given.keys():
            self._add(made[key].nbytes())
            weakref.finalize(made[key], self._add, -made[key].nbytes())
        copied = self.copies and function is torch.ops.aten.convolution.default
        self.most = max(self.most, self.now + (arguments[0].nbytes if copied else 0))
        return result

    def _add(self, size: int) -> None:
        self.now += size


def _storages(tree: Any) -> dict[int, torch.UntypedStorage]:
    tensors = (leaf for leaf in tree_iter(tree) if isinstance(leaf, torch.Tensor))
    return {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in tensors}
