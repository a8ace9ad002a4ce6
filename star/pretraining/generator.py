"""Pretraining of the miniature from nothing: VAE, then text encoders and transformer together.

The result is a plain `StableDiffusion3Pipeline` directory. Every batch is drawn from a generator
seeded by (seed, step), so a resumed run continues exactly; state is written every ``save_every``
steps.

Recipe (ours): rectified flow matching ``x_s = (1-s) x_0 + s e``, target ``e - x_0``, logit-normal
noise levels as in Stable Diffusion 3 (arXiv 2403.03206); Muon for the transformer's matrices, AdamW
for the rest; constant learning rate with warm-up and a linear decay at the end; exponential moving
average of the weights."""

import copy
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
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
from star.method.precision import autocast
from star.miniature import world
from star.pretraining.loop import append_log, forget_log_after, rate_factor, split_optimizers
from star.pretraining.tokenizers import T5_LENGTH, save_clip_tokenizer, save_t5_tokenizer
from star.prompts.geneval import TAGS, sample_metadata
from star.system.progress import Progress
from star.training.checkpoint import load_state, optimizer_tensors, restore_optimizer, save_state

LATENT_CHANNELS = 8
TEXT_WIDTH = 128
# Colours are learnt last: two prompts in five name them.
TAG_WEIGHTS = dict(zip(TAGS, (0.06, 0.10, 0.12, 0.18, 0.14, 0.22), strict=True)) | {"sign": 0.18}


@dataclass(frozen=True)
class PretrainConfig:
    """Sizes and lengths of the pretraining; ``steps`` count batches."""

    seed: int = 0
    vae_steps: int = 2000
    vae_batch: int = 24
    vae_learning_rate: float = 2e-3
    steps: int = 5000  # length of the learning-rate schedule
    stop: int = (
        4250  # steps of it that are run: the tail sharpens the images and leaves RL little to show
    )
    batch: int = 64
    learning_rate: float = 2e-3
    warmup: int = 300
    decay_share: float = 0.3  # share of the steps over which the rate falls linearly to zero
    ema: float = 0.999
    text_dropout: float = 0.05  # share of empty prompts, for classifier-free guidance
    save_every: int = 250
    log_every: int = 25
    shift: float = 2.0  # of the scheduler that is saved with the model


def sample_batch(size: int, rng: np.random.Generator) -> tuple[torch.Tensor, list[str]]:
    """Images in [-1, 1], float32 (size, 3, 64, 64), and their prompts, of the world's mixture of
    forms."""
    names, weights = list(TAG_WEIGHTS), np.array(list(TAG_WEIGHTS.values()))
    images, prompts = [], []
    for tag in rng.choice(names, size=size, p=weights / weights.sum()):
        metadata = sample_sign(rng) if tag == "sign" else sample_metadata(tag, world.CLASSES, rng)
        images.append(world.render(world.sample_scene(metadata, rng)))
        prompts.append(metadata["prompt"])
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)  # (size, 3, 64, 64)
    return batch.float() / 127.5 - 1, prompts


def sample_sign(rng: np.random.Generator) -> dict:
    """A sign with random letters: ``{"text", "prompt"}``."""
    length = int(rng.integers(world.WORD_LENGTHS[0], world.WORD_LENGTHS[1] + 1))
    text = "".join(rng.choice(list(world.LETTERS), size=length))
    return {"text": text, "prompt": f'a sign that says "{text}"'}


def pretrain(output: Path, work: Path, config: PretrainConfig) -> None:
    """Train the base model and write the pipeline directory ``output``; resume state and log lie in
    ``work``."""
    work.mkdir(parents=True, exist_ok=True)
    vae = _train_vae(work, config)
    pipe = _new_pipeline(vae, work, config)
    _train_flow(pipe, work, config)
    pipe.to(torch.float16).save_pretrained(output, safe_serialization=True)


# ---------------------------------------------------------------- VAE


def _train_vae(work: Path, config: PretrainConfig) -> AutoencoderKL:
    torch.manual_seed(config.seed)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 48, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=world.SIZE,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    done = work / "vae"
    if done.exists():
        vae = AutoencoderKL.from_pretrained(done)
        vae.register_to_config(
            _name_or_path=""
        )  # a path of this machine, which would be saved with the pipeline
        return vae
    vae.train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=config.vae_learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.vae_learning_rate, total_steps=config.vae_steps, pct_start=0.05
    )
    bar = Progress(range(config.vae_steps), desc="vae", unit="batch", mininterval=5)
    for step in bar:
        images, _ = sample_batch(config.vae_batch, np.random.default_rng([config.seed, 1, step]))
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        with autocast("auto", torch.device("cpu")):
            posterior = vae.encode(images).latent_dist
            decoded = vae.decode(posterior.sample(generator)).sample
        error = decoded.float() - images
        loss = (
            error.square().mean()
            + 0.1 * error.abs().mean()
            + 1e-5 * posterior.kl().mean() / LATENT_CHANNELS
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % config.log_every == 0 or step + 1 == config.vae_steps:
            decibels = 10 * float(torch.log10(4 / error.detach().square().mean()))
            append_log(
                work, {"part": "vae", "step": step, "loss": loss.item(), "psnr_db": decibels}
            )
            bar.set_postfix(psnr_db=f"{decibels:.1f}")
    vae.eval()
    images, _ = sample_batch(512, np.random.default_rng([config.seed, 2]))
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mode()
    vae.register_to_config(
        scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item()
    )
    vae.save_pretrained(done)
    return vae


# ---------------------------------------------------------------- text encoders and transformer


def _new_pipeline(
    vae: AutoencoderKL, work: Path, config: PretrainConfig
) -> StableDiffusion3Pipeline:
    torch.manual_seed(config.seed + 1)
    if not (
        work / "clip"
    ).exists():  # a resumed run keeps the tokenizer that its weights were trained with
        save_clip_tokenizer(work / "clip")
    save_t5_tokenizer(work / "t5")
    clip_tokenizer, t5_tokenizer = (
        CLIPTokenizer.from_pretrained(work / "clip"),
        T5Tokenizer.from_pretrained(work / "t5"),
    )
    clip_config = CLIPTextConfig(
        vocab_size=len(clip_tokenizer),
        hidden_size=TEXT_WIDTH // 2,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH // 2,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=clip_tokenizer.model_max_length,
        hidden_act="gelu",
        bos_token_id=clip_tokenizer.bos_token_id,
        eos_token_id=clip_tokenizer.eos_token_id,
        pad_token_id=clip_tokenizer.pad_token_id,
    )
    t5_config = T5Config(
        vocab_size=len(t5_tokenizer),
        d_model=TEXT_WIDTH,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=32,
    )
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=8,
        num_attention_heads=4,
        attention_head_dim=32,
        joint_attention_dim=TEXT_WIDTH,
        caption_projection_dim=4 * 32,
        pooled_projection_dim=TEXT_WIDTH,
        pos_embed_max_size=16,
        dual_attention_layers=(0, 1),
        qk_norm="rms_norm",
    )
    _zero_the_gates(transformer)
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=config.shift),
        vae=vae,
        text_encoder=CLIPTextModelWithProjection(clip_config),
        tokenizer=clip_tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(clip_config),
        tokenizer_2=clip_tokenizer,
        text_encoder_3=T5EncoderModel(t5_config),
        tokenizer_3=t5_tokenizer,
    )


def _zero_the_gates(transformer: SD3Transformer2DModel) -> None:
    """adaLN-zero (arXiv 2212.09748): each block starts as the identity, the output as zero."""
    for name, module in transformer.named_modules():
        if isinstance(module, torch.nn.Linear) and (
            ".norm1" in name or "norm_out" in name or name == "proj_out"
        ):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)


def _trained_modules(pipe: StableDiffusion3Pipeline) -> torch.nn.ModuleDict:
    return torch.nn.ModuleDict(
        {
            name: getattr(pipe, name)
            for name in ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
        }
    )


def _train_flow(pipe: StableDiffusion3Pipeline, work: Path, config: PretrainConfig) -> None:
    use_joint_processor(pipe.transformer, plain_attention)
    modules = _trained_modules(pipe).train()
    average = copy.deepcopy(modules).requires_grad_(False)
    muon, adamw = split_optimizers(modules, _is_block_matrix, config.learning_rate)
    state = work / "flow.safetensors"
    first = 0
    if state.exists():
        tensors, facts = load_state(state)
        modules.load_state_dict(
            {k[6:]: v for k, v in tensors.items() if k.startswith("model.")}, strict=False
        )
        average.load_state_dict(
            {k[4:]: v for k, v in tensors.items() if k.startswith("ema.")}, strict=False
        )
        restore_optimizer(muon, tensors, "muon.")
        restore_optimizer(adamw, tensors, "adamw.")
        first = facts["step"]
        forget_log_after(work, first, "flow")
    bar = Progress(
        range(first, config.stop),
        initial=first,
        total=config.stop,
        desc="flow",
        unit="batch",
        mininterval=5,
    )
    started, losses = time.time(), []
    for step in bar:
        loss = _flow_loss(pipe, config, step)
        rate = rate_factor(step, config.steps, config.warmup, config.decay_share)
        for optimizer in (muon, adamw):
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * rate
        loss.backward()
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        muon.step()
        adamw.step()
        _update_average(average, modules, min(config.ema, (1 + step) / (10 + step)))
        losses.append(loss.item())
        if (step + 1) % config.log_every == 0:
            seen = config.batch * (step + 1 - first)
            line = {
                "part": "flow",
                "step": step + 1,
                "loss": float(np.mean(losses)),
                "images": config.batch * (step + 1),
            }
            append_log(work, {**line, "images_per_s": seen / (time.time() - started)})
            bar.set_postfix(loss=f"{np.mean(losses):.4f}")
            losses = []
        if (step + 1) % config.save_every == 0 or step + 1 == config.stop:
            tensors = {f"model.{k}": v for k, v in modules.named_parameters()}
            tensors |= {f"ema.{k}": v for k, v in average.named_parameters()}
            tensors |= optimizer_tensors(muon, "muon.") | optimizer_tensors(adamw, "adamw.")
            save_state(state, tensors, {"step": step + 1})
    modules.load_state_dict(average.state_dict())
    modules.eval()


def _flow_loss(pipe: StableDiffusion3Pipeline, config: PretrainConfig, step: int) -> torch.Tensor:
    rng = np.random.default_rng([config.seed, 3, step])
    images, prompts = sample_batch(config.batch, rng)
    prompts = ["" if rng.random() < config.text_dropout else prompt for prompt in prompts]
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    with autocast("auto", torch.device("cpu")):
        with torch.no_grad():
            encoded = pipe.vae.encode(images).latent_dist.mode().float()
        x_0 = (
            encoded - pipe.vae.config.shift_factor
        ) * pipe.vae.config.scaling_factor  # (batch, 8, 16, 16)
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
    return (velocity.float() - (e - x_0)).square().mean()


def _is_block_matrix(name: str, parameter: torch.nn.Parameter) -> bool:
    return ".transformer_blocks." in name and parameter.ndim == 2 and ".norm1" not in name


@torch.no_grad()
def _update_average(average: torch.nn.Module, current: torch.nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(current.parameters()), 1 - decay)
