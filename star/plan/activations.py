"""Bytes of one sequence's activations in the transformer, summed tensor by tensor.

Torch counts none of this without the device, as autocast has no meta device. Autograd keeps, of a
block with ``n`` image and ``m`` text tokens, width ``D``, heads ``H``, LoRA rank ``r`` and ``c``
bytes a value of the compute type, for each sequence:

- LoRA: the input of each layer and its ``r``-wide product. Under autocast queries, keys and values
  have each their own cast copy of the one input; in float32 they share it.
- normalised queries and keys: a float32 copy (of the square), the root, and under autocast the
  value itself.
- attention, fused: query, key, value, output and the log-sum-exp; plain: scaled query, key, value,
  probabilities.
- layer norms: input and statistics, which a GPU's autocast has in float32.
- MLP: the input of its GELU. The weights are frozen, so the inputs of the products are not kept.
- modulation: gates and scales, one row each.
- image-only attention: the same without LoRA. Block 0 keeps nothing of it, as its input has no
  gradient.

Frozen float32 weights are cast anew at every product, and the graph keeps the copy. Without
checkpointing the copies of all blocks live together, with it those of one.
"""

from dataclasses import dataclass
from typing import Any

from star.config.params import ModelParams
from star.method.attention import PLAIN_TOKENS

FLOAT = 4  # bytes


def is_fused(device: str, tokens: int) -> bool:
    """Tell whether `star.method.attention.choose_kernel` takes an attention without scores."""
    return device == "cuda" or tokens > PLAIN_TOKENS


@dataclass(frozen=True)
class Activations:
    """The sizes of one sequence's activations.

    Attributes:
        config: of the `SD3Transformer2DModel`.
        image, text: tokens.
        rank: of the LoRA adapter.
        value, norm: bytes of a value of the compute type, and of layer norms.
        mixed: whether there is autocast.
        fused: whether attention keeps no scores.
    """

    config: Any
    image: int
    text: int
    rank: int
    value: int
    norm: int
    mixed: bool
    fused: bool

    @staticmethod
    def of(config: Any, tokens: tuple[int, int], model: ModelParams, device: str) -> "Activations":
        """Return those of a parameter file; precision ``auto`` is bf16."""
        mixed = model.precision != "no"
        value = 2 if mixed else FLOAT
        norm = FLOAT if device == "cuda" else value
        fused = is_fused(device, sum(tokens))
        return Activations(config, *tokens, model.lora_rank, value, norm, mixed, fused)

    @property
    def width(self) -> int:
        return self.config.num_attention_heads * self.config.attention_head_dim

    @property
    def depth(self) -> int:
        return self.config.num_layers

    @property
    def input(self) -> int:
        """Return the bytes of one sequence as it enters a block."""
        return (self.image + self.text) * self.width * self.value

    def graph(self, sequences: int, checkpointing: bool) -> int:
        """Return the bytes that one forward pass leaves: of all blocks, or of their inputs."""
        inputs = self.depth * sequences * self.input
        blocks = sum(self.block(index, sequences) for index in range(self.depth))
        head = sequences * self.image * self._layer_norm()
        return head + (inputs if checkpointing else blocks)

    def block(self, index: int, sequences: int) -> int:
        """Return the bytes that one block adds to the graph."""
        return sequences * self._kept(index) + self._copies(index)

    def forward(self) -> int:
        """Return the bytes of one sequence at the fullest moment of a block without gradient.

        That is where queries and keys leave their norms in float32 and are cast, where scores
        become probabilities, or in the GELU of either stream's MLP.
        """
        value, image, text, width = self.value, self.image, self.text, self.width
        tokens, dual = image + text, bool(self.config.dual_attention_layers)
        second = image * self.norm if dual else 0  # what enters the image-only attention
        entered = tokens * width * (value + self.norm) + width * second
        cast = 2 * tokens * width * FLOAT if self.mixed and self.config.qk_norm else 0
        normalised = 3 * tokens * width * value + cast
        attention = (4 if self.fused else 5) * tokens * width * value + self._scores()
        # In the MLPs both streams' block inputs and attention outputs are there as well, in the
        # text's also what the image's gave.
        streams = tokens * (2 * value + self.norm) + (image * value if dual else 0) + second
        mlp = width * (streams + max(9 * image, 9 * text + 2 * image) * value)
        return max(entered + max(normalised, attention), mlp)

    def backward(self) -> int:
        """Return the bytes of one sequence's gradients at the fullest moment of a block.

        That is in the MLP, before and after the GELU of the longer stream, or in the attention (3
        widths a token), by when what the MLPs kept inside their GELU (4) is gone.
        """
        row, tokens = self.width * self.value, self.image + self.text
        mlp = 8 * max(self.image, self.text) * row
        return 2 * tokens * row + max(mlp, self._scores() - tokens * row)

    def _kept(self, index: int) -> int:
        """Return the bytes of one sequence that one block keeps for the backward pass."""
        image, text, width, value = self.image, self.text, self.width, self.value
        first, last = index == 0, index == self.depth - 1
        dual = index in self.config.dual_attention_layers
        ending = image + (0 if last else text)  # tokens behind the attention
        kept = self._lora(image + text, 3) + self._lora(ending, 1) + self._attention(image + text)
        kept += ending * (self._layer_norm() + 4 * width * value)  # the MLP's input, its GELU's
        kept += 0 if first else (image + text) * self._layer_norm()
        kept += self._attention(image) if dual and not first else 0
        rows = (9 if dual else 6) + (0 if last else 6) + 4  # gates with what they were cut from
        return kept + rows * width * value

    def _copies(self, index: int) -> int:
        """Return the bytes of the cast weights in one block's graph, whatever the batch."""
        if not self.mixed:
            return 0
        first, last = index == 0, index == self.depth - 1
        dual = index in self.config.dual_attention_layers and not first
        squares = (0 if first else 6) + (9 if last else 18) + (4 if dual else 0)
        adapter = (7 if last else 8) * 2 * self.rank
        return (squares * self.width + adapter) * self.width * self.value

    def _lora(self, tokens: int, layers: int) -> int:
        inputs = layers if self.mixed else 1
        return tokens * (inputs * self.width + layers * self.rank) * self.value

    def _attention(self, tokens: int) -> int:
        """Return the bytes of one attention and of the norms of its queries and keys."""
        heads, width, value = self.config.num_attention_heads, self.width, self.value
        each = width * (FLOAT + (value if self.mixed else 0)) + heads * FLOAT
        norms = 2 * tokens * each if self.config.qk_norm else 0
        if self.fused:
            return norms + tokens * (4 * width * value + heads * FLOAT)
        return norms + tokens * (3 * width + heads * tokens) * value

    def _scores(self) -> int:
        """Return the bytes of scores and probabilities, of an attention that has them."""
        scores = self.config.num_attention_heads * (self.image + self.text) ** 2
        return 0 if self.fused else 2 * scores * self.value

    def _layer_norm(self) -> int:
        return (self.width + 2) * self.norm
