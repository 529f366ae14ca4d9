"""How many operations a pair needs, and the time that a machine needs for them at best.

A multiplication and an addition are two floating-point operations (FLOPs). Counted are
the products of matrices alone, on real tokens alone, and of the last layer only what
the answer depends on: the keys and values of all tokens, and the rest of the positions
that the linker reads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from bert_export.modeling.bert_config import BertConfig

# A backward pass computes two products of the same size for each one of the forward
# pass: the gradients of both factors.
STEP = 3


@dataclasses.dataclass(frozen=True)
class Operations:
    """FLOPs by the kind of product, which may have precisions of their own."""

    # By weight matrices.
    weights: int
    # Of queries and keys, and of probabilities and values.
    attention: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.weights + self.attention

    def seconds(self, peak: Mapping[str, float], precision: str) -> float:
        """The least time they take.

        Args:
          peak: FLOPs a second by precision.
          precision: of the weights; attention stays float32 where they are int8.
        """
        attention = "float32" if precision == "int8" else precision
        return self.weights / peak[precision] + self.attention / peak[attention]


def forward(bert: BertConfig, lengths: Iterable[int], reads: int) -> Operations:
    """What one pass over a batch needs.

    Args:
      bert: the encoder.
      lengths: the real tokens of each pair.
      reads: positions of each pair that the linker reads.
    """
    lengths = list(lengths)
    tokens, read = sum(lengths), reads * len(lengths)
    hidden, inner = bert.hidden_size, bert.intermediate_size
    kernel = 2 * hidden * hidden  # FLOPs a token
    key_value, rest = 2 * kernel, 2 * kernel + 4 * hidden * inner
    whole_layers = bert.num_hidden_layers - 1
    return Operations(
        weights=whole_layers * tokens * (key_value + rest)
        + tokens * key_value
        + read * rest
        + 2 * read * hidden * 2,
        # Each query meets every token of its row twice.
        attention=4
        * hidden
        * sum(
            length * (whole_layers * length + min(reads, length)) for length in lengths
        ),
    )


def step(bert: BertConfig, lengths: Iterable[int], reads: int) -> Operations:
    """What the forward and backward pass over a batch need; see `forward`."""
    once = forward(bert, lengths, reads)
    return Operations(STEP * once.weights, STEP * once.attention)
