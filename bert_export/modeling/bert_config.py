"""The BERT config JSON: sizes, dropout and initialisation of the encoder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from bert_export.errors import UserError

# BERT's own activation (the exact GELU) is the only one the encoder has.
HIDDEN_ACT = "gelu"
# Keys without which the encoder's shape is unknown.
REQUIRED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """What Google's `bert_config.json` and Hugging Face's `config.json` share.

    Defaults are those of google-research/bert.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    hidden_act: str = HIDDEN_ACT
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    # Standard deviation of the truncated normal that new weights are drawn from.
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_type(field.name, field.type, getattr(self, field.name))
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if self.hidden_act != HIDDEN_ACT:
            raise UserError(
                f"hidden_act is {self.hidden_act!r}; only {HIDDEN_ACT!r} (exact) "
                "is supported"
            )

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_json(cls, path: str | Path) -> BertConfig:
        """Reads Google's `bert_config.json` or Hugging Face's `config.json`.

        Keys that this encoder has no use for are passed over.

        Raises:
          UserError: the file is unreadable, not a BERT config, lacks a size, or
            asks for something other than BERT's architecture.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot read the BERT config: {error}") from error
        if not isinstance(values, dict):
            raise UserError(
                f"{path}: expected a JSON object, found {type(values).__name__}"
            )
        model_type = values.get("model_type", "bert")
        if model_type != "bert":
            raise UserError(
                f"{path}: model_type is {model_type!r}; expected 'bert' (other "
                "architectures have other weights and inputs)"
            )
        positions = values.get("position_embedding_type", "absolute")
        if positions != "absolute":
            raise UserError(
                f"{path}: position_embedding_type is {positions!r}; only 'absolute' "
                "is supported"
            )
        missing = [key for key in REQUIRED if key not in values]
        if missing:
            raise UserError(f"{path}: the BERT config lacks {', '.join(missing)}")
        names = {field.name for field in dataclasses.fields(cls)}
        try:
            return cls(**{name: values[name] for name in names if name in values})
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def _check_type(name: str, kind: Any, value: Any) -> None:
    """Raises UserError unless `value` suits the field (`kind` as annotated)."""
    if kind == "int":
        if type(value) is not int or value < 1:
            raise UserError(f"{name} must be a positive integer, found {value!r}")
    elif kind == "float":
        if type(value) not in (int, float) or not 0 <= value < 1:
            raise UserError(f"{name} must be a number in [0, 1), found {value!r}")
    elif not isinstance(value, str):
        raise UserError(f"{name} must be a string, found {value!r}")
