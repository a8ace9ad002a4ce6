"""Pretraining of the miniature: VAE, then text encoders and transformer together, from nothing or
from another world's weights.

The result is a plain `StableDiffusion3Pipeline` directory. Every batch is drawn from a generator
seeded by (seed, step), so a resumed run continues exactly; state is written every ``save_every``
steps.

Recipe (ours): rectified flow matching ``x_s = (1-s) x_0 + s e``, target ``e - x_0``, logit-normal
noise levels as in Stable Diffusion 3 (arXiv 2403.03206); Muon for the transformer's matrices, AdamW
for the rest; constant learning rate with warm-up and a linear decay at the end; exponential moving
average of the weights."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from star.method.attention import plain_attention, use_joint_processor
from star.method.ema import Average
from star.method.precision import autocast
from star.miniature.world import SIZE, Scene
from star.pretraining.config import GeneratorConfig
from star.pretraining.data import Sample, sample_mixture
from star.pretraining.loop import append_log, train
from star.pretraining.tokenizers import T5_LENGTH, save_clip_tokenizer, save_t5_tokenizer
from star.system.progress import Progress

_SIZES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


def image_tensor(samples: Sequence[Sample]) -> torch.Tensor:
    """Return images in [-1, 1], float32 (size, 3, 64, 64)."""
    images = torch.from_numpy(np.stack([item.image for item in samples]))
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def pretrain(output: Path, work: Path, config: GeneratorConfig) -> None:
    """Train the base model and write its pipeline directory; state and log lie in ``work``."""
    work.mkdir(parents=True, exist_ok=True)
    vae = _train_vae(work, config)
    pipe = _new_pipeline(vae, work, config)
    _train_flow(pipe, work, config)
    pipe.to(torch.float16).save_pretrained(output, safe_serialization=True)


# ---------------------------------------------------------------- VAE


def _train_vae(work: Path, config: GeneratorConfig) -> AutoencoderKL:
    torch.manual_seed(config.seed)
    done = work / "vae"
    if done.exists():
        vae = AutoencoderKL.from_pretrained(done)
        # A path of this machine, which would be saved with the pipeline.
        vae.register_to_config(_name_or_path="")
        return vae
    vae = AutoencoderKL(**_SIZES["vae"]).train()
    if config.start:
        begun = AutoencoderKL.from_pretrained(config.start, subfolder="vae", dtype=torch.float32)
        vae.load_state_dict(begun.state_dict())
        vae.encoder.requires_grad_(False)
    trained = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.vae_learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.vae_learning_rate, total_steps=config.vae_steps, pct_start=0.05
    )
    bar = Progress(range(config.vae_steps), desc="vae", unit="batch", mininterval=5)
    for step in bar:
        rng = np.random.default_rng([config.seed, 1, step])
        images = image_tensor(sample_mixture(config.vae_batch, rng, config.world))
        loss, error = _vae_loss(vae, images, config.seed * 1_000_003 + step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        if step % config.log_every == 0 or step + 1 == config.vae_steps:
            decibels = 10 * float(torch.log10(4 / error.detach().square().mean()))
            line = {"part": "vae", "step": step, "loss": loss.item(), "psnr_db": decibels}
            append_log(work, line)
            bar.set_postfix(psnr_db=f"{decibels:.1f}")
    vae.eval()
    if config.start:
        scaling, shift = begun.config.scaling_factor, begun.config.shift_factor
    else:
        rng = np.random.default_rng([config.seed, 2])
        images = image_tensor(sample_mixture(512, rng, config.world))
        with torch.no_grad():
            latents = vae.encode(images).latent_dist.mode()
        scaling, shift = 1 / latents.std().item(), latents.mean().item()
    vae.register_to_config(scaling_factor=scaling, shift_factor=shift)
    vae.save_pretrained(done)
    return vae


def _vae_loss(
    vae: AutoencoderKL, images: torch.Tensor, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss and the error of each pixel, (batch, 3, 64, 64)."""
    with autocast("auto", torch.device("cpu")):
        posterior = vae.encode(images).latent_dist
        decoded = vae.decode(posterior.sample(torch.Generator().manual_seed(seed))).sample
    error = decoded.float() - images
    divergence = 1e-5 * posterior.kl().mean() / vae.config.latent_channels
    return error.square().mean() + 0.1 * error.abs().mean() + divergence, error


# ---------------------------------------------------------------- text encoders and transformer


def _new_pipeline(
    vae: AutoencoderKL, work: Path, config: GeneratorConfig
) -> StableDiffusion3Pipeline:
    torch.manual_seed(config.seed + 1)
    # A resumed run keeps the tokenizer that its weights were trained with.
    if not (work / "clip").exists():
        save_clip_tokenizer(work / "clip")
    save_t5_tokenizer(work / "t5")
    clip = CLIPTokenizer.from_pretrained(work / "clip")
    t5 = T5Tokenizer.from_pretrained(work / "t5")
    clip_config = CLIPTextConfig(
        **_SIZES["clip"],
        vocab_size=len(clip),
        max_position_embeddings=clip.model_max_length,
        bos_token_id=clip.bos_token_id,
        eos_token_id=clip.eos_token_id,
        pad_token_id=clip.pad_token_id,
    )
    transformer = SD3Transformer2DModel(**_SIZES["transformer"])
    _zero_the_gates(transformer)
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=config.shift),
        vae=vae,
        text_encoder=CLIPTextModelWithProjection(clip_config),
        tokenizer=clip,
        text_encoder_2=CLIPTextModelWithProjection(clip_config),
        tokenizer_2=clip,
        text_encoder_3=T5EncoderModel(T5Config(**_SIZES["t5"], vocab_size=len(t5))),
        tokenizer_3=t5,
    )


def _zero_the_gates(transformer: SD3Transformer2DModel) -> None:
    """Start each block as the identity and the output as zero: adaLN-zero (arXiv 2212.09748)."""
    for name, module in transformer.named_modules():
        gate = ".norm1" in name or "norm_out" in name or name == "proj_out"
        if gate and isinstance(module, torch.nn.Linear):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)


def _train_flow(pipe: StableDiffusion3Pipeline, work: Path, config: GeneratorConfig) -> None:
    use_joint_processor(pipe.transformer, plain_attention)
    names = ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
    if config.start:
        begun = StableDiffusion3Pipeline.from_pretrained(config.start, dtype=torch.float32)
        for name in names:
            getattr(pipe, name).load_state_dict(getattr(begun, name).state_dict())
    modules = torch.nn.ModuleDict({name: getattr(pipe, name) for name in names}).train()
    average = Average(modules.parameters(), config.ema, every=1)

    def losses_of(step: int) -> dict[str, torch.Tensor]:
        return {"loss": _flow_loss(pipe, config, step)}

    train("flow", modules, _is_block_matrix, losses_of, work, config, average)
    with torch.no_grad():
        for parameter, value in zip(modules.parameters(), average.values, strict=True):
            parameter.copy_(value)
    modules.eval()


def _flow_loss(pipe: StableDiffusion3Pipeline, config: GeneratorConfig, step: int) -> torch.Tensor:
    rng = np.random.default_rng([config.seed, 3, step])
    samples = sample_mixture(config.batch, rng, config.world)
    prompts = ["" if rng.random() < config.text_dropout else item.prompt for item in samples]
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    with autocast("auto", torch.device("cpu")):
        with torch.no_grad():
            encoded = pipe.vae.encode(image_tensor(samples)).latent_dist.mode().float()
        latents = pipe.vae.config
        x_0 = (encoded - latents.shift_factor) * latents.scaling_factor  # (batch, 8, 16, 16)
        s = torch.sigmoid(torch.randn(len(prompts), generator=generator))
        e = torch.randn(x_0.shape, generator=generator)
        x_s = (1 - s[:, None, None, None]) * x_0 + s[:, None, None, None] * e
        embeds, _, pooled, _ = pipe.encode_prompt(
            prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=T5_LENGTH
        )
        velocity = pipe.transformer(
            x_s,
            timestep=1000 * s,
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            return_dict=False,
        )[0]
    errors = (velocity.float() - (e - x_0)).square().mean(1)  # (batch, 16, 16)
    if step < config.named_steps:
        errors = errors * place_weights([item.scene for item in samples], step, config)
    return errors.mean()


def place_weights(scenes: Sequence[Scene], step: int, config: GeneratorConfig) -> torch.Tensor:
    """Return how much the loss weighs each latent before step `named_steps`: (batch, 16, 16)."""
    extra = (config.named_weight - 1) * (1 - step / config.named_steps)
    return 1 + extra * torch.from_numpy(np.stack([named_share(scene) for scene in scenes]))


def named_share(scene: Scene) -> np.ndarray:
    """Return the share of each latent where objects of the prompt stand: float32 (16, 16)."""
    mask = np.zeros((SIZE, SIZE), np.float32)
    for item in scene.objects:
        half = item.size // 2 + 1
        mask[item.y - half : item.y + half, item.x - half : item.x + half] = 1
    return mask.reshape(16, 4, 16, 4).mean((1, 3))


def _is_block_matrix(name: str, parameter: torch.nn.Parameter) -> bool:
    return ".transformer_blocks." in name and parameter.ndim == 2 and ".norm1" not in name
