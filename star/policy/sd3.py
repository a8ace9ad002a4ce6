"""The generator as a policy: an SD3-family pipeline, its text conditioning, velocity and images.

``x`` are latents (batch, channels, height, width), float32; noise levels ``s`` are the scheduler's
sigmas, and every (sigma, timestep) pair is passed explicitly, never looked up."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from star.config.params import ModelParams, fingerprint
from star.method.attention import Kernel, choose_kernel, use_joint_processor
from star.method.precision import (
    AUTOCAST_DTYPES,
    autocast,
    hold_products,
    resolve_precision,
    set_tf32,
)
from star.policy.adapter import (
    ADAPTER_FILE,
    BASE_FILE,
    base_fingerprint,
    check_base,
    check_layers,
    folded,
    full_strength,
    read_adapter,
)
from star.policy.conditioning import Conditioning, PromptStore
from star.policy.loading import find_pipeline, open_pipeline
from star.system.errors import StarError
from star.system.files import sort_header, write_text_atomic
from star.system.memory import memory_for
from star.system.pretrained import OPENING_ERRORS

# Flow-GRPO's targets: the joint attention of every block, not the image-only attn2.
_LAYERS = "to_q to_k to_v to_out.0 add_q_proj add_k_proj add_v_proj to_add_out"
LORA_TARGETS = [f"attn.{layer}" for layer in _LAYERS.split()]
ENCODED = 16  # prompts that the text encoders take at a time
Tokenizers = tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase, PreTrainedTokenizerBase]


@dataclass(frozen=True)
class Schedule:
    """Noise levels ``sigmas`` (steps + 1, about 1 to 0) and the model's ``timesteps`` (steps)."""

    sigmas: list[float]
    timesteps: list[float]


class SD3Policy:
    """A `StableDiffusion3Pipeline` with what rollout, update and evaluation share.

    Its frozen weights take the types that `hold_products` says.

    Args:
        pipe: with a float32 transformer; it moves to ``device``.
    """

    def __init__(
        self, pipe: StableDiffusion3Pipeline, model: ModelParams, device: torch.device
    ) -> None:
        self.base = base_fingerprint(pipe.transformer)  # of the weights as they are in the files
        hold_products(pipe.transformer, model.precision)
        self.pipe, self.model = pipe.to(device), model
        self.transformer = pipe.transformer
        # SD3.5-M's position table is for images of 6,144 pixels: 0.84 GiB.
        table, (_, height, width) = self.transformer.pos_embed, self.latent_shape
        table.pos_embed = table.cropped_pos_embed(height, width)
        table.pos_embed_max_size = height // self.patch
        self.encoders = pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3
        self.tokenizers: Tokenizers = (pipe.tokenizer, pipe.tokenizer_2, pipe.tokenizer_3)
        # Lengths of the CLIP and of the T5 part of the text sequence.
        self.text_lengths = pipe.tokenizer.model_max_length, model.t5_tokens
        self.attention_kernel, kernel = self._choose_kernel()
        use_joint_processor(self.transformer, kernel)
        for part in (pipe.transformer, pipe.vae, *self.encoders):
            part.requires_grad_(False).eval()
        pipe.set_progress_bar_config(disable=True)
        if model.gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        if model.vae_slicing:
            pipe.vae.enable_slicing()
        folder = None
        if model.prompt_cache:
            folder = Path(model.prompt_cache) / encoder_key(model, self.device.type)
        self.prompts = PromptStore(self._encode, folder, self.device, ENCODED)

    def _choose_kernel(self) -> tuple[str, Kernel]:
        dtype = AUTOCAST_DTYPES.get(self.model.precision, self.transformer.dtype)
        tokens = self.locations + sum(self.text_lengths)
        config = self.transformer.config
        heads, head_dim = config.num_attention_heads, config.attention_head_dim
        return choose_kernel(self.device, dtype, tokens, heads, head_dim)

    @property
    def device(self) -> torch.device:
        # `transformer.device` would look for hooks in every module.
        return next(self.transformer.parameters()).device

    # -- text --------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Return the conditioning of prompts; each distinct one is encoded once and kept."""
        return self.prompts.get(prompts)

    def prepare_prompts(self, prompts: Sequence[str]) -> None:
        """Encode all prompts to `ModelParams.prompt_cache`, then move the text encoders to the CPU.

        The empty prompt of the guidance is encoded, too. Without a cache nothing happens.
        """
        if self.prompts.folder is None:
            return
        self.prompts.fill([*prompts, ""])
        for encoder in self.encoders:
            encoder.to("cpu")

    @memory_for("prompt encoding")
    def _encode(self, prompts: list[str]) -> Conditioning:
        for encoder in self.encoders:  # they may have left
            encoder.to(self.device)
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            prompts,
            prompt_2=None,
            prompt_3=None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.model.t5_tokens,
        )
        return Conditioning(embeds, pooled)

    # -- denoising ---------------------------------------------------------------------------------

    def schedule(self, steps: int) -> Schedule:
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self.pipe.scheduler.config)
        scheduler.set_timesteps(steps)
        return Schedule(scheduler.sigmas.tolist(), scheduler.timesteps.tolist())

    def timesteps(self, sigmas: Tensor) -> Tensor:
        """Return the model's timesteps of noise levels."""
        return sigmas * self.pipe.scheduler.config.num_train_timesteps

    def velocity(self, x: Tensor, timestep: float | Tensor, conditioning: Conditioning) -> Tensor:
        """Return the predicted ``e - x_0``, float32, like ``x``.

        Args:
            timestep: of all of the batch, or of each, (B,).

        With guidance the transformer's batch is [unconditional, conditional].
        """
        if self.model.guidance_scale <= 1:
            return self._predict(x, timestep, conditioning)
        empty = self._empty(conditioning)
        embeds = torch.cat([empty.embeds, conditioning.embeds])
        both = Conditioning(embeds, torch.cat([empty.pooled, conditioning.pooled]))
        if isinstance(timestep, Tensor):
            timestep = torch.cat([timestep, timestep])
        unconditional, conditional = self._predict(torch.cat([x, x]), timestep, both).chunk(2)
        return unconditional + self.model.guidance_scale * (conditional - unconditional)

    def guidance_direction(
        self, x: Tensor, timestep: float | Tensor, conditioning: Conditioning
    ) -> Tensor:
        """Return conditional minus unconditional velocity, like ``x``."""
        conditional = self._predict(x, timestep, conditioning)
        return conditional - self._predict(x, timestep, self._empty(conditioning))

    def _empty(self, like: Conditioning) -> Conditioning:
        empty = self.encode([""])
        pooled = empty.pooled.expand_as(like.pooled)
        return Conditioning(empty.embeds.expand_as(like.embeds), pooled)

    def _predict(self, x: Tensor, timestep: float | Tensor, conditioning: Conditioning) -> Tensor:
        if not isinstance(timestep, Tensor):
            timestep = torch.full((x.shape[0],), timestep, device=x.device)
        with self.autocast():
            return self.transformer(
                hidden_states=x,
                timestep=timestep,
                encoder_hidden_states=conditioning.embeds,
                pooled_projections=conditioning.pooled,
                return_dict=False,
            )[0].float()

    def autocast(self) -> torch.autocast:
        return autocast(self.model.precision, self.device)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Return (channels, height, width) of an image's latent."""
        side = self.model.resolution // self.pipe.vae_scale_factor
        return self.transformer.config.in_channels, side, side

    @property
    def locations(self) -> int:
        """Return the number of an image's tokens."""
        _, height, width = self.latent_shape
        return (height // self.patch) * (width // self.patch)

    @property
    def patch(self) -> int:
        """Return the latent pixels along the side of one image token."""
        return self.transformer.config.patch_size

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Draw standard normal latents, one per seed, on the CPU: all devices agree."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        drawn = [torch.randn(self.latent_shape, generator=generator) for generator in generators]
        return torch.stack(drawn).to(self.device)

    @torch.no_grad()
    def decode(self, x: Tensor) -> np.ndarray:
        """Return the images of finished latents, uint8 (batch, height, width, 3)."""
        vae = self.pipe.vae
        x = x / vae.config.scaling_factor + vae.config.shift_factor
        images = vae.decode(x, return_dict=False)[0]
        images = (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)  # (batch, height, width, 3)
        return (images.float().cpu().numpy() * 255).round().astype(np.uint8)

    # -- adapter -----------------------------------------------------------------------------------

    def add_adapter(self, seed: int) -> list[torch.nn.Parameter]:
        """Add the trainable LoRA layers and return their float32 parameters, in a fixed order."""
        config = LoraConfig(
            r=self.model.lora_rank,
            lora_alpha=self.model.lora_alpha,
            init_lora_weights="gaussian",
            target_modules=LORA_TARGETS,
        )
        for name, layer in self.transformer.named_modules():
            if name.endswith(tuple(LORA_TARGETS)):
                layer.float()  # PEFT gives LoRA the type of its layer
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.transformer.add_adapter(config)
        hold_products(self.transformer, self.model.precision)
        return [parameter for parameter in self.transformer.parameters() if parameter.requires_grad]

    def compile(self) -> None:
        """Compile the blocks, if the parameters ask for it; they share one graph.

        Call it after the adapter is added.
        """
        if self.model.compile != "no":
            for block in self.transformer.transformer_blocks:
                block.compile(backend=self.model.compile)

    @torch.no_grad()
    def start_from(self, adapter: Path) -> None:
        """Give the trainable LoRA layers the weights of a trained adapter.

        Raises:
            StarError: it is unreadable, of another base, of another rank or of other layers.
        """
        check_base(adapter, self.base, self.model)
        found = read_adapter(adapter)
        check_layers(found, self.transformer)
        own = {f"transformer.{key}": value for key, value in self.adapter_state().items()}
        for key, value in folded(found.weights, 1 / self.strength).items():
            if own[key].shape != value.shape:
                rank = min(value.shape)
                raise StarError(f"{found.file}: has rank {rank}; set model.lora_rank to {rank}")
            own[key].copy_(value)

    @property
    def strength(self) -> float:
        """Return the factor of the trainable LoRA layers."""
        return self.model.lora_alpha / self.model.lora_rank

    def adapter_state(self) -> dict[str, Tensor]:
        return get_peft_model_state_dict(self.transformer)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Switch the adapter off inside: the base model."""
        self.transformer.disable_adapters()
        try:
            yield
        finally:
            self.transformer.enable_adapters()

    def save_adapter(self, folder: Path) -> None:
        """Write LoRA safetensors that plain ``pipe.load_lora_weights(folder)`` takes.

        The strength is in the weights, and alpha is the rank: so programs draw the same images
        whether they read alpha or not. The same adapter gives the same bytes.
        """
        config = self.transformer.peft_config["default"].to_dict()
        self.pipe.save_lora_weights(
            folder,
            transformer_lora_layers=folded(self.adapter_state(), self.strength),
            transformer_lora_adapter_metadata=config | full_strength(config),
        )
        sort_header(folder / ADAPTER_FILE)
        model = self.model
        base = {"path": model.path, "revision": model.revision, "fingerprint": self.base}
        write_text_atomic(folder / BASE_FILE, json.dumps(base, indent=1) + "\n")


@memory_for("opening")
def load_policy(model: ModelParams, device: torch.device, adapter: Path | None = None) -> SD3Policy:
    """Open the pipeline that ``model`` names, with a trained adapter if one is given.

    The VAE stays float32. On a GPU the text encoders take the autocast type. The policy's ``model``
    says what `auto` became on the device.

    Raises:
        StarError: what `star.policy.loading` refuses of the model; an adapter that is unreadable,
            of another base or of other layers.
    """
    folder = find_pipeline(model)
    precision: Any = resolve_precision(model.precision, device)
    model = dataclasses.replace(model, precision=precision)
    set_tf32(model.tf32)
    text_dtype = torch.float32
    if device.type == "cuda":
        text_dtype = AUTOCAST_DTYPES.get(model.precision, torch.float32)
    pipe = open_pipeline(folder, model, text_dtype)
    if folder != Path(model.path):  # a hub id; the hub's cache names the folder by the commit
        model = dataclasses.replace(model, revision=folder.name)
    if adapter is not None:
        check_base(adapter, base_fingerprint(pipe.transformer), model)
        found = read_adapter(adapter)
        config = found.config and {f"transformer.{key}": v for key, v in found.config.items()}
        try:
            pipe.transformer.load_lora_adapter(dict(found.weights), metadata=config)
        except OPENING_ERRORS as error:
            raise StarError(
                f"{found.file}: not a LoRA adapter for {model.path}: {error}"
            ) from error
        check_layers(found, pipe.transformer)
    return SD3Policy(pipe, model, device)


def encoder_key(model: ModelParams, device: str) -> str:
    """Return a key that changes with all that decides what the text encoders make of a prompt."""
    folder = Path(model.path)
    files = [*sorted(folder.glob("t*encoder*/*")), *sorted(folder.glob("tokenizer*/*"))]
    stats = [(file, file.stat()) for file in files]
    listed = [(f.parent.name, f.name, stat.st_size, stat.st_mtime_ns) for f, stat in stats]
    return fingerprint(model.path, model.revision, model.t5_tokens, model.precision, device, listed)
