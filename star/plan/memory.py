"""What a process has on its device, in bytes: what stays, and what each phase adds at its highest.

Not counted: the allocator's fragments, kernels' scratch, and the CUDA context (about half a GiB).
Nor are what compiled blocks save otherwise, the graph of each step that they draw to be trained
(an update has as much), the reading of maps, and clauses beyond the first.
"""

from collections.abc import Mapping

import torch

from star.config.params import TASKS, Params
from star.plan.activations import FLOAT, Activations
from star.plan.counts import branches, shared, trained_steps
from star.plan.models import LiveBytes, Pipeline, parameters_of
from star.plan.result import Memory
from star.plan.reward_models import Scorer, layer_bytes
from star.policy.conditioning import KEPT
from star.policy.sd3 import ENCODED
from star.training.batches import looks_ahead
from star.training.samples import SHEET_PROMPTS

# Host memory of interpreter, libraries and CUDA, and of an OCR process: assumed.
OWN, OCR_WORKER = 4 * 2**30, 2**29


class MemoryEstimate:
    """Estimates the memory of the processes that a parameter file asks for.

    Args:
        device: ``cuda`` or ``cpu``. On the CPU images are counted too, and short sequences meet the
            plain attention.
    """

    def __init__(self, params: Params, pipeline: Pipeline, device: str) -> None:
        self.params, self.pipeline, self.on_cpu = params, pipeline, device == "cpu"
        model, config = params.model, pipeline.transformer.config
        self.sequence = Activations.of(config, pipeline.tokens(model), model, device)
        self.sequences = branches(model)  # of an image
        self.latent = FLOAT * torch.Size(pipeline.latent(model.resolution)).numel()
        self.image = 3 * model.resolution**2  # values
        self.fullest_decoding = count_decoding(pipeline, model.resolution, copies=self.on_cpu)
        self.cached = model.prompt_cache is not None
        value = FLOAT if self.on_cpu else self.sequence.value
        embedded = self.sequence.text * config.joint_attention_dim + config.pooled_projection_dim
        self.prompt = value * embedded  # bytes of one prompt's embeddings, as in the cache
        self.encoders = value * parameters_of(*pipeline.encoders)
        *clips, t5 = [encoder.config for encoder in pipeline.encoders]
        texts = [layer_bytes(clip, clip.max_position_embeddings, value) for clip in clips]
        self.encoding = ENCODED * max(*texts, layer_bytes(t5, model.t5_tokens, value))

    def training(self, task: str, params: Params, scorer: Scorer, processes: int) -> Memory:
        """Estimate one of ``processes`` that train together by one method.

        Args:
            params: with the method's own values.
        """
        model, batch, trained = params.model, params.rollout.batch, trained_steps(params)
        adapter = FLOAT * self.pipeline.adapter
        maps = FLOAT * (2 if params.allocation.uses_maps else 1) * trained * self.sequence.image
        if params.train.algorithm == "flow_grpo":
            latents = 2 * trained + 1  # and means
            # While a batch is decoded, they are there a second time, as the lists that they were
            # stacked from, and so are the finished latent, the last velocity and noise.
            drawn = batch * (latents + 3) * self.latent
        else:  # clean ones, noise, and velocities
            ahead = looks_ahead(params, params.allocation)
            latents, drawn = 1 + (2 if ahead else 1) * trained, 0
        if params.train.reuse_rollout:
            latents += trained  # means with their graphs
        # Of a rollout for its update: latents, relevance and maps, prompt, image.
        kept = latents * self.latent + maps + self.prompt + (self.image if self.on_cpu else 0)
        own = params.images_per_epoch // processes
        graphs = {way: self.reused(params, way, own) for way in (False, True)}
        trajectories = own * kept + graphs[model.gradient_checkpointing]
        gradients = adapter * (2 if processes > 1 else 1)  # several processes average a copy
        algorithm = params.train.algorithm
        nft, ema = algorithm == "nft", algorithm == "awm" and params.forward.anchor_to == "ema"
        copy = {"old policy": adapter} if nft else {"anchor": adapter} if ema else {}
        exchanged = sum(copy.values())  # the trained policy, while the copy takes its place
        phases = {
            "encoding prompts": self.encoding + (self.encoders if self.cached else trajectories),
            "denoising": trajectories + self.denoising(batch) + (exchanged if nft else 0),
            "decoding": trajectories + drawn + self.decoding(batch, model.vae_slicing),
            "sample grid": max(
                self.decoding(max(batch, SHEET_PROMPTS), model.vae_slicing),
                self.denoising(SHEET_PROMPTS),
            ),
            "update": trajectories
            + gradients
            + self.updating(params, model.gradient_checkpointing),
        }
        if scorer.resident:
            phases["scoring"] = trajectories + scorer.scoring
        alternatives = {
            "decoding, vae_slicing false": self.decoding(batch, False),
            "decoding, vae_slicing true": self.decoding(batch, True),
            "update, gradient_checkpointing false": graphs[False] + self.updating(params, False),
            "update, gradient_checkpointing true": graphs[True] + self.updating(params, True),
        }
        optimizer = {"AdamW": 2 * adapter, "EMA": adapter, **copy}
        resident = self._resident(drawn_prompts(params, task), {"reward model": scorer.resident})
        return Memory(resident | optimizer, trajectories, phases, alternatives)

    def evaluation(self, scorers: Mapping[str, Scorer]) -> Memory:
        """Estimate a process that evaluates one checkpoint on all benchmarks.

        Args:
            scorers: of every task, for batches of `evaluate.batch`. The preference model judges
                the images of all benchmarks.
        """
        params, batch = self.params, self.params.evaluate.batch
        judge = scorers["preference"].resident  # opened once a cache is filled
        # A benchmark's own is opened next to it; the preference task's is a second copy of it.
        own = judge + max(scorer.resident for scorer in scorers.values())
        scoring = max(scorer.resident + scorer.scoring for scorer in scorers.values())
        phases = {
            "encoding prompts": self.encoding + (self.encoders if self.cached else judge),
            "denoising": own + self.denoising(batch),
            "decoding": own + self.decoding(batch, params.model.vae_slicing),
            "scoring": judge + scoring,
        }
        tested = sum(getattr(params.prompts, task).test for task in TASKS)
        return Memory(self._resident(tested, {}), 0, phases, {})

    def host(self) -> int:
        """Return the bytes of host memory that a process with a GPU takes at its highest.

        That is when it has opened the pipeline and not yet moved it. The text encoders come back
        there once prompts are encoded.
        """
        pipeline = self.pipeline
        opened = pipeline.frozen + pipeline.positions + parameters_of(pipeline.vae)
        return FLOAT * opened + self.encoders + OWN + self.params.rewards.ocr.workers * OCR_WORKER

    def denoising(self, images: int) -> int:
        """Return the bytes that a step without gradient adds."""
        return self.sequences * images * self.sequence.forward()

    def decoding(self, images: int, slicing: bool) -> int:
        """Return the bytes that decoding adds: of the decoder, or of what the images become."""
        levels = images * self.fullest_decoding
        if slicing:  # of slices those done are kept
            levels = self.fullest_decoding + (images - 1) * FLOAT * self.image
        # Decoded; halved and raised; or clamped, grey levels, rounded.
        return max(levels, 3 * images * FLOAT * self.image)

    def reused(self, params: Params, checkpointing: bool, images: int) -> int:
        """Return the bytes of the graphs that rollouts keep for an update to reuse; mostly 0."""
        if not params.train.reuse_rollout:
            return 0
        first, most = self._trained(params)
        later = (trained_steps(params) - 1) * self.sequence.graph(most, checkpointing)
        return images // params.rollout.batch * (self.sequence.graph(first, checkpointing) + later)

    def updating(self, params: Params, checkpointing: bool) -> int:
        """Return the bytes that the fullest step of an update adds, the adapter's gradients aside.

        That is its graph (which may be the rollout's), with gradients or with the KL's reference
        pass. (An anchor's comes before there is a graph.) With checkpointing each block comes back,
        one at a time, before its gradients; the inputs of those behind it are gone by then.
        """
        train, sequence = params.train, self.sequence
        first, most = self._trained(params)

        def graph(sequences: int) -> int:
            return 0 if train.reuse_rollout else sequence.graph(sequences, checkpointing)

        full = graph(most) + most * sequence.backward()
        if checkpointing:
            full += max(
                sequence.block(index, most) - behind * most * sequence.input
                for behind, index in enumerate(reversed(range(sequence.depth)))
            )
        if train.kl_form == "none" or train.algorithm != "flow_grpo":
            return full
        judged = most if train.kl_beta > 0 else first  # without a weight only for the log
        return max(full, graph(judged) + judged * sequence.forward())

    def _trained(self, params: Params) -> tuple[int, int]:
        """Return the sequences of the window's first step of a batch, and of its largest."""
        batch = self.sequences * params.rollout.batch
        first = batch // shared(params)
        return first, batch if trained_steps(params) > 1 else first

    def _resident(self, prompts: int, reward: dict[str, int]) -> dict[str, int]:
        held, positions = self.pipeline.held, self.sequence.image * self.sequence.width
        exact = self.pipeline.frozen - held + positions
        return {
            "transformer": FLOAT * exact + self.sequence.value * held,
            "VAE, float32": FLOAT * parameters_of(self.pipeline.vae),
            "text encoders": 0 if self.cached else self.encoders,
            "prompt embeddings": self.prompt * (min(KEPT, prompts) if self.cached else prompts),
            **reward,
            "LoRA": FLOAT * self.pipeline.adapter,
        }


def count_decoding(pipeline: Pipeline, resolution: int, copies: bool) -> int:
    """Count the bytes of one image at the fullest moment of its decoding.

    Args:
        copies: as `LiveBytes`'s. `benchmarks/memory.py`: without copies 64 and 128 images differ on
            a CPU by a fifth less than they do.
    """
    latent = torch.zeros(1, *pipeline.latent(resolution), device="meta")
    with torch.no_grad(), LiveBytes(copies) as live:
        pipeline.vae.decode(latent)
    return live.most


def drawn_prompts(params: Params, task: str) -> int:
    """Return the prompts that a training draws, at most: it may draw one twice."""
    drawn = params.train.epochs * params.train.prompts_per_epoch
    return min(drawn, getattr(params.prompts, task).train)
