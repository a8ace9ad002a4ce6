"""Bytes of a sequence's activations, summed by hand: autocast has no meta device to count them on.

Autograd keeps of each block, for ``n`` image and ``m`` text tokens:

- LoRA: the input of each layer and its product. Under autocast queries, keys and values have each
  their own cast copy of the one input; in float32 they share it.
- normalised queries and keys: a float32 copy, the root, and under autocast the value itself.
- fused attention: query, key, value, output and the log-sum-exp; plain: scaled query, key, value
  and probabilities.
- layer norms: input and statistics, which a GPU's autocast has in float32.
- MLP: the input of its GELU alone, as the weights are frozen; modulation: gates and scales.
- image-only attention: the same without LoRA; nothing in block 0, whose input has no gradient.

LoRA's weights are cast under autocast, and the graph keeps the copy.
"""

from dataclasses import dataclass
from typing import Any

from star.config.params import ModelParams
from star.method.attention import PLAIN_TOKENS

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Activations:
    """Sizes of one sequence of ``image`` and ``text`` tokens through an `SD3Transformer2DModel`."""

    config: Any  # the transformer's
    image: int
    text: int
    rank: int  # of the LoRA adapter
    value: int  # bytes of a value of the compute type
    norm: int  # the same of layer norms
    mixed: bool  # whether there is autocast
    fused: bool  # whether attention keeps no scores

    @staticmethod
    def of(config: Any, tokens: tuple[int, int], model: ModelParams, device: str) -> "Activations":
        """Return those of a parameter file on a device; precision ``auto`` is taken for bf16."""
        mixed = model.precision != "no"
        value = 2 if mixed else FLOAT
        norm = FLOAT if device == "cuda" else value
        fused = device == "cuda" or sum(tokens) > PLAIN_TOKENS  # as `choose_kernel` decides
        return Activations(config, *tokens, model.lora_rank, value, norm, mixed, fused)

    @property
    def tokens(self) -> int:
        return self.image + self.text

    @property
    def width(self) -> int:
        return self.config.num_attention_heads * self.config.attention_head_dim

    @property
    def depth(self) -> int:
        return self.config.num_layers

    @property
    def input(self) -> int:
        """Return the bytes of one sequence as it enters a block."""
        return self.tokens * self.width * self.value

    def graph(self, sequences: int, checkpointing: bool) -> int:
        """Return the bytes that a forward pass leaves: of all blocks, or of their inputs alone."""
        inputs = self.depth * sequences * self.input
        blocks = sum(self.block(index, sequences) for index in range(self.depth))
        return sequences * self._norms(self.image) + (inputs if checkpointing else blocks)

    def block(self, index: int, sequences: int) -> int:
        """Return the bytes that one block adds to the graph: activations, and cast weights."""
        first, last = index == 0, index == self.depth - 1
        dual = index in self.config.dual_attention_layers
        ending = self.image + (0 if last else self.text)  # tokens behind the attention
        kept = self._lora(self.tokens, 3) + self._lora(ending, 1) + self._attention(self.tokens)
        kept += self._norms(ending) + ending * 4 * self.width * self.value  # the MLPs
        kept += 0 if first else self._norms(self.tokens)
        kept += self._attention(self.image) if dual and not first else 0
        gates = (9 if dual else 6) + (0 if last else 6) + 4  # with what they were cut from, scales
        kept += gates * self.width * self.value
        cast = (7 if last else 8) * 2 * self.rank * self.width * self.value
        return sequences * kept + (cast if self.mixed else 0)

    def forward(self) -> int:
        """Return the bytes of one sequence at the fullest moment of a block without gradient.

        That is where queries and keys leave their norms in float32 and are cast. Or it is where
        scores become probabilities, or in the GELU of either stream's MLP.
        """
        value, dual = self.value, bool(self.config.dual_attention_layers)
        row = self.width * value  # bytes of one token
        second = self.image * self.width * self.norm if dual else 0  # enters the second attention
        entered = self.tokens * (row + self.width * self.norm) + second
        cast = 2 * self.tokens * self.width * FLOAT if self.mixed and self.config.qk_norm else 0
        attention = (4 if self.fused else 5) * self.tokens * row + self._scores()
        # In the MLPs both streams' block inputs and attention outputs are there as well, in the
        # text's also what the image's gave.
        streams = entered + self.tokens * row + (self.image * row if dual else 0)
        mlp = streams + max(9 * self.image, 9 * self.text + 2 * self.image) * row
        return max(entered + max(3 * self.tokens * row + cast, attention), mlp)

    def backward(self) -> int:
        """Return the bytes of one sequence's gradients at the fullest moment of a block.

        That is in the MLP, before and after the GELU of the longer stream. Or it is in the
        attention (3 widths a token), by when what the MLPs kept inside their GELU (4) is gone.
        """
        row = self.width * self.value
        mlp = 8 * max(self.image, self.text) * row
        return 2 * self.tokens * row + max(mlp, self._scores() - self.tokens * row)

    def _lora(self, tokens: int, layers: int) -> int:
        inputs = layers if self.mixed else 1
        return tokens * (inputs * self.width + layers * self.rank) * self.value

    def _attention(self, tokens: int) -> int:
        """Return the bytes that one attention keeps, norms of its queries and keys included."""
        heads, width, value = self.config.num_attention_heads, self.width, self.value
        norms = 2 * (width * (FLOAT + (value if self.mixed else 0)) + heads * FLOAT)
        plain, fused = (3 * width + heads * tokens) * value, 4 * width * value + heads * FLOAT
        return tokens * ((norms if self.config.qk_norm else 0) + (fused if self.fused else plain))

    def _scores(self) -> int:
        """Return the bytes of scores and probabilities, of an attention that has them."""
        scores = self.config.num_attention_heads * self.tokens**2
        return 0 if self.fused else 2 * scores * self.value

    def _norms(self, tokens: int) -> int:
        return tokens * (self.width + 2) * self.norm
