"""What a process has on its device, in bytes: what stays, and what each phase adds at its highest.

Sizes are those of models on the meta device, activations are summed in `star.plan.activations`. Not
counted: the allocator's fragments, kernels' scratch, the CUDA context (about half a GiB), what
compiled blocks save otherwise, the reading of maps, and clauses beyond the first of clause-wise
ones.
"""

from collections.abc import Mapping

import torch

from star.config.params import TASKS, AllocationParams, Params
from star.plan.activations import FLOAT, Activations
from star.plan.counts import branches, shared
from star.plan.models import LiveBytes, Pipeline, parameters_of
from star.plan.result import Memory
from star.plan.reward_models import Scorer, layer_bytes
from star.policy.conditioning import KEPT
from star.policy.sd3 import ENCODED
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
        self.branches, self.cached = branches(model), model.prompt_cache is not None
        value = FLOAT if self.on_cpu else self.sequence.value
        embedded = self.sequence.text * config.joint_attention_dim + config.pooled_projection_dim
        self.prompt = value * embedded  # bytes of one prompt, in memory as in the cache
        self.encoders = value * parameters_of(*pipeline.encoders)
        clips, t5 = pipeline.encoders[:2], pipeline.encoders[2].config
        fullest = [layer_bytes(c.config, c.config.max_position_embeddings, value) for c in clips]
        self.encoding = ENCODED * max(*fullest, layer_bytes(t5, model.t5_tokens, value))
        self.image = 3 * model.resolution**2  # values of an image
        self.fullest_decoding = count_decoding(pipeline, model.resolution, copies=self.on_cpu)

    def training(
        self, task: str, allocation: AllocationParams, scorer: Scorer, processes: int
    ) -> Memory:
        """Estimate one of ``processes`` that train together by one method."""
        params, model, batch = self.params, self.params.model, self.params.rollout.batch
        adapter = FLOAT * self.pipeline.adapter
        images = params.images_per_epoch // processes
        each = self._trajectory(allocation) + self.prompt + (self.image if self.on_cpu else 0)
        trajectories = images * each
        gradients = adapter * (2 if processes > 1 else 1)  # several processes average a copy
        sheet = max(
            self.decoding(max(batch, SHEET_PROMPTS), model.vae_slicing),
            self.branches * SHEET_PROMPTS * self.sequence.forward(),
        )
        decoding = self._drawing(batch) + self.decoding(batch, model.vae_slicing)
        updating = gradients + self.updating(model.gradient_checkpointing)
        phases = {
            "encoding prompts": self.encoding + (self.encoders if self.cached else trajectories),
            "denoising": trajectories + self.branches * batch * self.sequence.forward(),
            "decoding": trajectories + decoding,
            "sample grid": sheet,
            "update": trajectories + updating,
        }
        if scorer.parameters:
            phases["scoring"] = trajectories + scorer.scoring
        alternatives = {
            "decoding, vae_slicing false": self.decoding(batch, False),
            "decoding, vae_slicing true": self.decoding(batch, True),
            "update, gradient_checkpointing false": self.updating(False),
            "update, gradient_checkpointing true": self.updating(True),
        }
        resident = self._resident(drawn_prompts(params, task), scorer.parameters)
        resident |= {"AdamW": 2 * adapter, "EMA": adapter}
        return Memory(resident, trajectories, phases, alternatives)

    def evaluation(self, scorers: Mapping[str, Scorer]) -> Memory:
        """Estimate a process that evaluates one checkpoint on all benchmarks.

        Args:
            scorers: of every task, for batches of `evaluate.batch`. The preference model judges
                the images of all benchmarks.
        """
        params, batch = self.params, self.params.evaluate.batch
        judge = FLOAT * scorers["preference"].parameters  # opened once a cache is filled
        # A benchmark's own is opened beside it; the preference task's is a second copy of it.
        own = judge + FLOAT * max(scorer.parameters for scorer in scorers.values())
        scoring = max(FLOAT * scorer.parameters + scorer.scoring for scorer in scorers.values())
        phases = {
            "encoding prompts": self.encoding + (self.encoders if self.cached else judge),
            "denoising": own + self.branches * batch * self.sequence.forward(),
            "decoding": own + self.decoding(batch, params.model.vae_slicing),
            "scoring": judge + scoring,
        }
        tested = sum(getattr(params.prompts, task).test for task in TASKS)
        resident = self._resident(tested)
        del resident["reward model"]  # it comes and goes with its benchmark
        return Memory(resident, 0, phases, {})

    def host(self) -> int:
        """Return the bytes of host memory that a process beside a GPU takes at its highest.

        That is when it has opened the pipeline and not yet moved it. The text encoders come back
        there once prompts are encoded.
        """
        opened = FLOAT * (self.pipeline.frozen + parameters_of(self.pipeline.vae)) + self.encoders
        return opened + OWN + self.params.rewards.ocr.workers * OCR_WORKER

    def updating(self, checkpointing: bool) -> int:
        """Return the bytes that the fullest step of an update adds, adapter's gradients aside.

        That is its graph, with gradients or with the reference's pass. With checkpointing each
        block comes back, one at a time, before its gradients; the inputs of those behind it are
        gone by then.
        """
        rollout, train, sequence = self.params.rollout, self.params.train, self.sequence
        first = self.branches * rollout.batch // shared(self.params)  # of the window's first step
        single = rollout.window[1] - rollout.window[0] == 1
        most = first if single else self.branches * rollout.batch
        full = sequence.graph(most, checkpointing) + most * sequence.backward()
        if checkpointing:
            last = sequence.depth - 1
            full += max(
                sequence.block(i, most) - (last - i) * most * sequence.input
                for i in range(sequence.depth)
            )
        if train.kl_form == "none":
            return full
        judged = most if train.kl_beta > 0 else first  # without a weight only for the log
        return max(full, sequence.graph(judged, checkpointing) + judged * sequence.forward())

    def decoding(self, images: int, slicing: bool) -> int:
        """Return the bytes that decoding adds: of the decoder, or of what the images become."""
        levels = images * self.fullest_decoding
        if slicing:  # of slices those done are kept
            levels = self.fullest_decoding + (images - 1) * FLOAT * self.image
        # Decoded; halved and raised; or clamped, grey levels, rounded.
        return max(levels, 3 * images * FLOAT * self.image)

    def _resident(self, prompts: int, reward: int = 0) -> dict[str, int]:
        """Return what stays: ``prompts`` to embed, and ``reward`` parameters."""
        return {
            "transformer, float32": FLOAT * self.pipeline.frozen,
            "VAE, float32": FLOAT * parameters_of(self.pipeline.vae),
            "text encoders": 0 if self.cached else self.encoders,
            "prompt embeddings": self.prompt * (min(KEPT, prompts) if self.cached else prompts),
            "reward model": FLOAT * reward,
            "LoRA": FLOAT * self.pipeline.adapter,
        }

    @property
    def _latent(self) -> int:
        channels, height, width = self.pipeline.latent(self.params.model.resolution)
        return channels * height * width

    @property
    def _trained(self) -> int:
        return self.params.rollout.window[1] - self.params.rollout.window[0]

    def _drawing(self, images: int) -> int:
        """Return the bytes that rollouts hold beside their trajectories while they are decoded.

        Latents and means are there a second time, as the lists that they were stacked from, and so
        are the finished latent, the last velocity and noise.
        """
        return images * FLOAT * (2 * self._trained + 1 + 3) * self._latent

    def _trajectory(self, allocation: AllocationParams) -> int:
        """Return the bytes of one rollout for the update: latents, means, relevance and maps."""
        maps = (2 if allocation.uses_maps else 1) * self._trained * self.sequence.image
        return FLOAT * ((2 * self._trained + 1) * self._latent + maps)


def count_decoding(pipeline: Pipeline, resolution: int, copies: bool) -> int:
    """Count the bytes of one image at the fullest moment of its decoding.

    Args:
        copies: whether convolutions work on a copy of their input in a layout of their own, as
            oneDNN's do on a CPU. `benchmarks/memory.py`: without it 64 and 128 images differ by a
            fifth less than they do.
    """
    latent = torch.zeros(1, *pipeline.latent(resolution), device="meta")
    with torch.no_grad(), LiveBytes(copies) as live:
        pipeline.vae.decode(latent)
    return live.most


def drawn_prompts(params: Params, task: str) -> int:
    """Return the prompts that a training draws, at most: it may draw one twice."""
    drawn = params.train.epochs * params.train.prompts_per_epoch
    return min(drawn, getattr(params.prompts, task).train)
