"""What a process has on its device, in bytes: what stays, and what each phase adds at its highest.

Activations are counted tensor by tensor from what the blocks do. Autograd keeps, of a block with
``n`` image and ``m`` text tokens, width ``D``, heads ``H``, LoRA rank ``r`` and ``c`` bytes a value
of the compute type, for each sequence:

- LoRA: the input of each layer and its ``r``-wide product. Under autocast queries, keys and values
  have each their own cast copy of the one input; in float32 they share it.
- normalised queries and keys: a float32 copy (of the square), under autocast the value itself, and
  the root.
- attention, fused: query, key, value, output and the log-sum-exp; plain: scaled query, key, value,
  probabilities.
- layer norms: input and statistics, which a GPU's autocast has in float32; MLP: the input of its
  GELU (the products' weights are frozen, so their inputs are not kept); modulation: gates and
  scales, one row each.
- of image-only attention the same without LoRA, and nothing of it in block 0, whose input has no
  gradient.

Frozen float32 weights are cast anew at every product, and the copy is kept with the graph: without
checkpointing those of all blocks live together, with it those of one.

Not counted: the allocator's fragments, kernels' scratch, the CUDA context (about half a GiB), what
compiled blocks save otherwise, the reading of maps, and clauses beyond the first of clause-wise
ones."""

from collections.abc import Mapping
from dataclasses import dataclass

from star.config.params import TASKS, AllocationParams, Params
from star.plan.counts import branches, shared
from star.plan.scorers import Scorer
from star.plan.shapes import Pipeline, Transformer, Vae

FLOAT = 4  # bytes
PLAIN_TOKENS = 512  # as star.method.attention.PLAIN_TOKENS
ENCODED = 16  # as star.policy.sd3.ENCODED
KEPT = 512  # as star.policy.conditioning.KEPT
SHEET_PROMPTS = 16  # as star.training.samples.SHEET_PROMPTS
OWN, OCR_WORKER = (
    4 * 2**30,
    2**29,
)  # host memory of interpreter, libraries and CUDA, and of an OCR process: assumed


@dataclass(frozen=True)
class Memory:
    """Bytes of one process. resident: by part; trajectories: what an epoch's rollouts keep for its
    updates; phases: what each adds to the resident parts at its highest, trajectories included;
    alternatives: what decoding and update add without them, with `model.vae_slicing` and
    `model.gradient_checkpointing` set and not."""

    resident: dict[str, int]
    trajectories: int
    phases: dict[str, int]
    alternatives: dict[str, int]

    @property
    def peak(self) -> str:
        """The phase with the most."""
        return max(self.phases, key=lambda name: self.phases[name])

    @property
    def total(self) -> int:
        return sum(self.resident.values()) + self.phases[self.peak]


def is_fused(device: str, tokens: int) -> bool:
    """Whether `star.method.attention.choose_kernel` will take an attention that keeps no scores."""
    return device == "cuda" or tokens > PLAIN_TOKENS


@dataclass(frozen=True)
class Sequence:
    """What decides the size of one sequence's activations.

    value: bytes of the compute type; norm: of layer norms; mixed: autocast; fused: an attention
    that keeps no scores."""

    transformer: Transformer
    image: int
    text: int
    rank: int
    value: int
    norm: int
    mixed: bool
    fused: bool

    @staticmethod
    def of(params: Params, pipeline: Pipeline, device: str) -> "Sequence":
        model, mixed = (
            params.model,
            params.model.precision != "no",
        )  # auto: as on a device that has bf16
        image, text = (
            pipeline.image_tokens(model.resolution),
            pipeline.clip_tokens + model.t5_tokens,
        )
        value = 2 if mixed else FLOAT
        return Sequence(
            pipeline.transformer,
            image,
            text,
            model.lora_rank,
            value,
            FLOAT if device == "cuda" else value,
            mixed,
            is_fused(device, image + text),
        )

    @property
    def latent(self) -> int:
        """Elements of one image's latent."""
        return self.image * self.transformer.patch**2 * self.transformer.channels

    @property
    def input(self) -> int:
        """Bytes of one sequence as it enters a block."""
        return (self.image + self.text) * self.transformer.width * self.value

    # -- kept for the backward pass ----------------------------------------------------------------

    def kept(self, index: int) -> int:
        """Bytes of one sequence in one block."""
        t, n, m, value = self.transformer, self.image, self.text, self.value
        first, last, dual = index == 0, index == t.depth - 1, index in t.dual
        ending = 0 if last else m  # text tokens behind the attention
        kept = self._lora(n + m, 3) + self._lora(n + ending, 1)
        kept += self._normalised(n + m) + self._attention(n + m)
        kept += (n + ending) * (
            self._layer_norm() + 4 * t.width * value
        )  # before the MLP, inside its GELU
        kept += 0 if first else (n + m) * self._layer_norm()
        if dual and not first:
            kept += self._normalised(n) + self._attention(n)
        rows = (
            (9 if dual else 6) + (0 if last else 6) + 4
        )  # gates with what they were cut from, scales
        return kept + rows * t.width * value

    def copies(self, index: int) -> int:
        """Bytes of the cast weights that one block's graph holds, whatever the batch."""
        t = self.transformer
        if not self.mixed:
            return 0
        first, last = index == 0, index == t.depth - 1
        squares = (
            (0 if first else 6) + (9 if last else 18) + (4 if index in t.dual and not first else 0)
        )
        return (squares * t.width + (7 if last else 8) * 2 * self.rank) * t.width * self.value

    def _lora(self, tokens: int, layers: int) -> int:
        inputs = layers if self.mixed else 1
        return tokens * (inputs * self.transformer.width + layers * self.rank) * self.value

    def _normalised(self, tokens: int) -> int:
        t = self.transformer
        each = t.width * (FLOAT + (self.value if self.mixed else 0)) + t.heads * FLOAT
        return 2 * tokens * each if t.qk_norm else 0

    def _attention(self, tokens: int) -> int:
        t = self.transformer
        if self.fused:
            return tokens * (4 * t.width * self.value + t.heads * FLOAT)
        return tokens * (3 * t.width + t.heads * tokens) * self.value

    def _layer_norm(self) -> int:
        return (self.transformer.width + 2) * self.norm

    def graph(self, sequences: int, checkpointing: bool) -> int:
        """Bytes that one forward pass leaves: of all blocks, or with checkpointing their inputs
        alone."""
        t = self.transformer
        inputs = t.depth * sequences * self.input
        blocks = sum(self.block(i, sequences) for i in range(t.depth))
        return sequences * self.image * self._layer_norm() + (inputs if checkpointing else blocks)

    def block(self, index: int, sequences: int) -> int:
        """Bytes that one block adds to the graph."""
        return sequences * self.kept(index) + self.copies(index)

    # -- in use for a moment -----------------------------------------------------------------------

    def forward(self) -> int:
        """Bytes of one sequence at the fullest moment of a block without gradient, whichever it is:
        queries and keys leave their norms in float32 and are cast; scores become probabilities; the
        GELU of either stream's MLP."""
        t, value, image, text = self.transformer, self.value, self.image, self.text
        d, tokens = t.width, image + text
        second = (
            image * self.norm if t.dual else 0
        )  # a value of what enters the image-only attention
        entered = (
            tokens * d * (value + self.norm) + d * second
        )  # the residual streams and what enters the attentions
        normalised = 3 * tokens * d * value + (
            2 * tokens * d * FLOAT if self.mixed and t.qk_norm else 0
        )
        scores = 0 if self.fused else 2 * t.heads * tokens**2 * value
        attention = (4 if self.fused else 5) * tokens * d * value + scores
        # In the MLPs both streams' block inputs and attention outputs are there as well, in the
        # text's also what the image's gave.
        streams = tokens * (2 * value + self.norm) + (image * value if t.dual else 0) + second
        mlp = d * (
            streams + max(9 * image, 9 * text + 2 * image) * value
        )  # the new sum, and both sides of the GELU
        return max(entered + max(normalised, attention), mlp)

    def backward(self) -> int:
        """Bytes of one sequence's gradients at the fullest moment of a block, beside the graph: in
        the MLP, or in the attention (3 widths a token), by when what the MLPs kept inside their
        GELU (4) is gone."""
        d, value, tokens = self.transformer.width, self.value, self.image + self.text
        scores = 0 if self.fused else 2 * self.transformer.heads * tokens**2 * value
        mlp = (
            8 * max(self.image, self.text) * d * value
        )  # before and after the GELU, of the longer stream
        return 2 * tokens * d * value + max(mlp, scores - tokens * d * value)


def estimate(
    params: Params,
    task: str,
    allocation: AllocationParams,
    pipeline: Pipeline,
    scorer: Scorer,
    processes: int,
    device: str,
) -> Memory:
    """Of a training process.

    Args:
        scorer: the models of the task's reward.
        device: ``cuda`` or ``cpu``; on the CPU images are counted, and short sequences meet the
    plain attention."""
    model, rollout = params.model, params.rollout
    sequence = Sequence.of(params, pipeline, device)
    transformer, encoder_value = pipeline.transformer, sequence.value if device == "cuda" else FLOAT
    adapter = FLOAT * transformer.adapter(model.lora_rank)
    encoders = encoder_value * sum(encoder.parameters for encoder in pipeline.encoders)
    prompt, prompts = prompt_bytes(params, pipeline, device), drawn_prompts(params, task)
    cached = model.prompt_cache is not None
    resident = {
        "transformer, float32": FLOAT * (transformer.parameters() + transformer.positions),
        "VAE, float32": FLOAT * pipeline.vae.parameters(),
        "text encoders": 0 if cached else encoders,
        "prompt embeddings": prompt * (min(KEPT, prompts) if cached else prompts),
        "reward model": FLOAT * scorer.parameters,
        "LoRA": adapter,
        "AdamW": 2 * adapter,
        "EMA": adapter,
    }
    images = params.images_per_epoch // processes
    trajectories = images * (_trajectory(params, allocation, sequence) + prompt)
    trajectories += images * 3 * model.resolution**2 if device == "cpu" else 0
    drawn, drawing = branches(params) * rollout.batch, rollout.batch * _drawing(params, sequence)
    encoding = ENCODED * max(
        encoder.fullest(encoder_value, model.t5_tokens) for encoder in pipeline.encoders
    )
    gradients = adapter * (2 if processes > 1 else 1)  # several processes average a copy

    def decode(count: int, slicing: bool) -> int:
        return decoding(pipeline.vae, model.resolution, count, slicing, copied=device == "cpu")

    phases = {
        "encoding prompts": encoding + (encoders if cached else trajectories),
        "denoising": trajectories + drawn * sequence.forward(),
        "decoding": trajectories + drawing + decode(rollout.batch, model.vae_slicing),
        "sample grid": max(
            decode(max(rollout.batch, SHEET_PROMPTS), model.vae_slicing),
            branches(params) * SHEET_PROMPTS * sequence.forward(),
        ),
        "update": trajectories
        + gradients
        + updating(params, sequence, model.gradient_checkpointing),
    }
    if scorer.parameters:
        phases["scoring"] = trajectories + scorer.scoring
    alternatives = {
        "decoding, vae_slicing false": decode(rollout.batch, False),
        "decoding, vae_slicing true": decode(rollout.batch, True),
        "update, gradient_checkpointing false": updating(params, sequence, False),
        "update, gradient_checkpointing true": updating(params, sequence, True),
    }
    return Memory(resident, trajectories, phases, alternatives)


def estimate_evaluation(
    params: Params, pipeline: Pipeline, scorers: Mapping[str, Scorer], device: str
) -> Memory:
    """Of a process that evaluates one checkpoint on all benchmarks; no trajectories.

    Args:
        scorers: of every task, for batches of `evaluate.batch`; the preference model judges all
    benchmarks' images."""
    model, batch = params.model, params.evaluate.batch
    sequence = Sequence.of(params, pipeline, device)
    encoder_value = sequence.value if device == "cuda" else FLOAT
    encoders = encoder_value * sum(encoder.parameters for encoder in pipeline.encoders)
    tested, cached = (
        sum(getattr(params.prompts, task).test for task in TASKS),
        model.prompt_cache is not None,
    )
    resident = {
        "transformer, float32": FLOAT
        * (pipeline.transformer.parameters() + pipeline.transformer.positions),
        "VAE, float32": FLOAT * pipeline.vae.parameters(),
        "text encoders": 0 if cached else encoders,
        "prompt embeddings": prompt_bytes(params, pipeline, device)
        * (min(KEPT, tested) if cached else tested),
        "LoRA": FLOAT * pipeline.transformer.adapter(model.lora_rank),
    }
    judge = (
        FLOAT * scorers["preference"].parameters
    )  # opened once the prompts of a cache are encoded
    encoding = ENCODED * max(
        encoder.fullest(encoder_value, model.t5_tokens) for encoder in pipeline.encoders
    )
    # A benchmark's own is opened beside it; the preference task's is a second copy of the judge.
    own = judge + FLOAT * max(scorer.parameters for scorer in scorers.values())
    decoded = decoding(
        pipeline.vae, model.resolution, batch, model.vae_slicing, copied=device == "cpu"
    )
    phases = {
        "encoding prompts": encoding + (encoders if cached else judge),
        "denoising": own + branches(params) * batch * sequence.forward(),
        "decoding": own + decoded,
        "scoring": judge
        + max(FLOAT * scorer.parameters + scorer.scoring for scorer in scorers.values()),
    }
    return Memory(resident, 0, phases, {})


def drawn_prompts(params: Params, task: str) -> int:
    """Prompts that a training draws, at most: it may draw one twice."""
    return min(
        params.train.epochs * params.train.prompts_per_epoch, getattr(params.prompts, task).train
    )


def prompt_bytes(params: Params, pipeline: Pipeline, device: str) -> int:
    """Bytes of one prompt's embeddings, in memory as in `model.prompt_cache`."""
    sequence = Sequence.of(params, pipeline, device)
    value = sequence.value if device == "cuda" else FLOAT
    return value * (
        sequence.text * pipeline.transformer.text_width + pipeline.transformer.pooled_width
    )


def host_memory(params: Params, pipeline: Pipeline) -> int:
    """Bytes of host memory that a process beside a GPU takes at its highest, when it has opened the
    pipeline and not yet moved it: the text encoders come back there once prompts are encoded. With
    the process's own and its OCR workers'."""
    value = 2 if params.model.precision != "no" else FLOAT
    opened = FLOAT * (
        pipeline.transformer.parameters()
        + pipeline.transformer.positions
        + pipeline.vae.parameters()
    )
    opened += value * sum(encoder.parameters for encoder in pipeline.encoders)
    return opened + OWN + params.rewards.ocr.workers * OCR_WORKER


def updating(params: Params, sequence: Sequence, checkpointing: bool) -> int:
    """Bytes that the fullest step of an update adds: its graph, with gradients or with the
    reference's pass.

    With checkpointing each block comes back, one at a time, before its gradients; the inputs of
    those behind it are gone by then."""
    rollout, train = params.rollout, params.train
    first = (
        branches(params) * rollout.batch // shared(params)
    )  # sequences of the window's first step
    steps = rollout.window[1] - rollout.window[0]
    most = branches(params) * rollout.batch if steps > 1 else first
    full = sequence.graph(most, checkpointing) + most * sequence.backward()
    if checkpointing:
        depth = sequence.transformer.depth
        full += max(
            sequence.block(i, most) - (depth - 1 - i) * most * sequence.input for i in range(depth)
        )
    if train.kl_form == "none":
        return full
    judged = (
        most if train.kl_beta > 0 else first
    )  # without a weight only the first step is, for the log
    return max(full, sequence.graph(judged, checkpointing) + judged * sequence.forward())


def decoding(vae: Vae, resolution: int, images: int, slicing: bool, copied: bool) -> int:
    """Bytes that decoding adds, in float32: the fullest moment of its fullest level or, of few
    channels or slices, of what is done with the images.

    A resnet holds its input, the level's own input, and the most of: norm and activation; both
    sides of its first convolution; the two branches, their sum and what is returned. Upsampling
    holds both sides of its convolution.

    Args:
        copied: whether convolutions work on a copy of their input in a layout of their own, as
            oneDNN's do on a CPU (`benchmarks/memory.py`: without it 64 and 128 images differ by a
            fifth less than they do).
    """
    fullest = 0
    for scale, resnets, upsampled in vae.decoder():
        area, entered = (resolution // vae.factor * scale) ** 2, resnets[0].inner
        for i, resnet in enumerate(resnets):
            branches_and_sum = (4 if resnet.inner != resnet.outer else 3) * resnet.outer
            held = resnet.inner + (entered if i else 0)
            first = (2 if copied else 1) * resnet.inner + resnet.outer
            fullest = max(fullest, area * (held + max(2 * resnet.inner, first, branches_and_sum)))
        fullest = max(fullest, area * (entered + (1 + (3 if copied else 2) * 4) * upsampled))
    image = 3 * resolution**2
    levels = (
        fullest + (images - 1) * image if slicing else images * fullest
    )  # of slices those done are kept
    return FLOAT * max(
        levels, 3 * images * image
    )  # decoded; halved and raised; or clamped, grey levels, rounded


def _drawing(params: Params, sequence: Sequence) -> int:
    """Bytes that the rollout of one image holds beside its trajectory while it is decoded:
    latents and means a second time, as the lists that they were stacked from; the finished latent;
    the last velocity and noise."""
    steps = params.rollout.window[1] - params.rollout.window[0]
    return FLOAT * (2 * steps + 1 + 3) * sequence.latent


def _trajectory(params: Params, allocation: AllocationParams, sequence: Sequence) -> int:
    """Bytes that the rollout of one image keeps for the update: latents, means, relevance and
    allocation maps."""
    steps = params.rollout.window[1] - params.rollout.window[0]
    maps = 1 if allocation.source == "uniform" or allocation.lam == 0 else 2
    return FLOAT * ((2 * steps + 1) * sequence.latent + maps * steps * sequence.image)
