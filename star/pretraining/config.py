"""Sizes and lengths of the two pretrainings; ``steps`` count batches."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GeneratorConfig:
    """How the base model is made."""

    seed: int = 0
    world: str = "plain"  # one of `star.miniature.world.WORLDS`
    # Pipeline from whose weights it goes on, its VAE's encoder kept; None: from nothing.
    start: str | None = None
    vae_steps: int = 2000
    vae_batch: int = 24
    vae_learning_rate: float = 2e-3
    steps: int = 5000  # length of the learning-rate schedule
    # Steps of it that are run: the tail sharpens the images and leaves RL little to show.
    stop: int = 4250
    batch: int = 64
    # The loss weighs more where objects of the prompt stand, so that the text is learned sooner. It
    # also draws them too often, so the weight falls linearly to one at step `named_steps`.
    named_steps: int = 0
    named_weight: float = 5.0  # at step 0
    learning_rate: float = 2e-3
    warmup: int = 300
    decay_share: float = 0.3  # share of the steps over which the rate falls linearly to zero
    ema: float = 0.999
    text_dropout: float = 0.05  # share of empty prompts, for classifier-free guidance
    save_every: int = 250
    log_every: int = 25
    shift: float = 2.0  # of the scheduler that is saved with the model


@dataclass(frozen=True)
class PreferenceConfig:
    """How the preference stand-in is made."""

    seed: int = 0
    world: str = "plain"  # one of `star.miniature.world.WORLDS`
    steps: int = 1600
    batch: int = 96  # images; half of them with a worse version next to them
    wrong: int = 3  # wrong captions an image
    mild_share: float = 0.3  # of pairs whose better image is itself mildly corrupted
    learning_rate: float = 2e-3
    warmup: int = 100
    decay_share: float = 0.5  # share of the steps over which the rate falls linearly to zero
    width: int = 128
    vision_layers: int = 4
    text_layers: int = 2
    save_every: int = 250
    log_every: int = 25
    held_out: int = 600  # pairs a kind

    @property
    def stop(self) -> int:
        """Return the steps that are run, which are all."""
        return self.steps


GENERATORS = {  # by world
    "plain": GeneratorConfig(),
    "crowded": GeneratorConfig(
        world="crowded",
        start="models/miniature",
        vae_steps=600,
        vae_learning_rate=1e-3,
        steps=2400,
        stop=2000,
        named_steps=3000,
        save_every=100,
    ),
}
