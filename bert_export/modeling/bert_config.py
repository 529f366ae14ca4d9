"""The BERT config JSON: sizes, dropout and initialisation of the encoder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from bert_export.errors import UserError

# The variants of BERT that the encoder can be, by transformers' names.
MODEL_TYPES = ("bert", "albert", "electra", "distilbert")
# What sets other architectures apart, for those who ask for them.
OTHERS = {
    "roberta": "byte-level BPE, and positions counted from 2",
    "xlm-roberta": "SentencePiece ids shifted as fairseq does, positions from 2",
    "camembert": "SentencePiece ids shifted as fairseq does, positions from 2",
    "deberta": "attention by relative positions",
    "deberta-v2": "attention by relative positions",
    "mpnet": "attention biased by relative positions",
    "t5": "an encoder and a decoder with relative positions",
    "gpt2": "a decoder",
}
# The exact GELU (arXiv:1606.08415), and two names of its approximation by tanh.
EXACT_GELU = "gelu"
TANH_GELUS = ("gelu_new", "gelu_pytorch_tanh")
# Keys without which the encoder's shape is unknown.
REQUIRED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)
# What DistilBERT's config calls otherwise.
DISTILBERT_KEYS = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
    "activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
}
# Where transformers' defaults are not BERT's.
DEFAULTS: dict[str, dict[str, Any]] = {
    "albert": {
        "hidden_act": "gelu_new",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "embedding_size": 128,
        "num_hidden_groups": 1,
    },
    "electra": {"embedding_size": 128},
}


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
    # 0: no segment embeddings, as in DistilBERT.
    type_vocab_size: int = 2
    hidden_act: str = EXACT_GELU
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    # Standard deviation of the truncated normal that new weights are drawn from.
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    # The variant, which variables are named after: one of MODEL_TYPES.
    model_type: str = "bert"
    # Width of the embeddings where a dense layer brings them to hidden_size, as in
    # ALBERT (arXiv:1909.11942) and ELECTRA (arXiv:2003.10555); None: no such layer.
    embedding_size: int | None = None
    # ALBERT's layers of one group share their variables; None: every layer has its own.
    num_hidden_groups: int | None = None
    # Layers that follow each other in each of ALBERT's `num_hidden_layers`.
    inner_group_num: int = 1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_type(field.name, field.type, getattr(self, field.name))
        if self.model_type not in MODEL_TYPES:
            raise UserError(_unsupported(self.model_type))
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if self.hidden_act not in (EXACT_GELU, *TANH_GELUS):
            raise UserError(
                f"hidden_act is {self.hidden_act!r}; supported are {EXACT_GELU!r} "
                f"(exact) and {TANH_GELUS[0]!r} or {TANH_GELUS[1]!r} (by tanh)"
            )
        if self.type_vocab_size == 1:
            raise UserError(
                "type_vocab_size is 1, but pairs have two segments; expected 2 or "
                "more, or 0 for none"
            )
        if (self.model_type == "albert") != (self.num_hidden_groups is not None):
            raise UserError(
                f"num_hidden_groups is {self.num_hidden_groups}, but model_type is "
                f"{self.model_type!r}; expected a number for 'albert' and none else"
            )
        if (self.num_hidden_groups or 0) > self.num_hidden_layers:
            raise UserError(
                f"num_hidden_groups is {self.num_hidden_groups}; expected at most "
                f"num_hidden_layers, {self.num_hidden_layers}"
            )

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def embedding_width(self) -> int:
        """Width of the embedding tables."""
        return self.embedding_size or self.hidden_size

    @property
    def approximate_gelu(self) -> bool:
        """Whether GELU is computed by tanh."""
        return self.hidden_act in TANH_GELUS

    @classmethod
    def from_json(cls, path: str | Path) -> BertConfig:
        """Reads Google's `bert_config.json` or Hugging Face's `config.json`.

        Keys that this encoder has no use for are passed over. A file without a
        `model_type` is Google's: of ALBERT with `num_hidden_groups`, of ELECTRA with
        `embedding_size`, else of BERT.

        Raises:
          UserError: the file is unreadable, not a BERT config, lacks a size, or
            asks for an architecture that the encoder is not.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot read the BERT config: {error}") from error
        if not isinstance(values, dict):
            raise UserError(
                f"{path}: expected a JSON object, found {type(values).__name__}"
            )
        try:
            return cls(**_arguments(values))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def _arguments(values: dict[str, Any]) -> dict[str, Any]:
    """The arguments of BertConfig that a config file's values stand for."""
    model_type = _model_type(values)
    positions = values.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise UserError(
            f"position_embedding_type is {positions!r}; only 'absolute' is supported"
        )
    if values.get("is_decoder"):
        raise UserError("is_decoder is true; only encoders are supported")
    if model_type == "distilbert":
        values = {DISTILBERT_KEYS.get(key, key): v for key, v in values.items()}
        # Constants of its implementation.
        values |= {"type_vocab_size": 0, "layer_norm_eps": 1e-12}
    missing = [key for key in REQUIRED if key not in values]
    if missing:
        raise UserError(f"the BERT config lacks {', '.join(missing)}")
    names = {field.name for field in dataclasses.fields(BertConfig)}
    if model_type != "albert":
        names -= {"num_hidden_groups", "inner_group_num"}
    if model_type not in ("albert", "electra"):
        names -= {"embedding_size"}
    result = {
        **DEFAULTS.get(model_type, {}),
        **{name: values[name] for name in names if name in values},
        "model_type": model_type,
    }
    is_googles = "model_type" not in values and "architectures" not in values
    # transformers' ALBERT has the dense layer in any case.
    if (model_type == "electra" or is_googles) and (
        result.get("embedding_size") == result["hidden_size"]
    ):
        result["embedding_size"] = None
    if model_type == "albert" and is_googles and result["hidden_act"] == EXACT_GELU:
        # google-research/albert computes what it calls gelu by tanh.
        result["hidden_act"] = TANH_GELUS[0]
    return result


def _model_type(values: dict[str, Any]) -> str:
    """Which variant of BERT a config file describes; UserError if none."""
    if "model_type" in values:
        found = values["model_type"]
    elif architectures := values.get("architectures"):
        # Files of 2019 name the model's class alone.
        found = str(architectures[0] if isinstance(architectures, list) else "")
        for model_type in MODEL_TYPES:
            if found.lower().startswith(model_type):
                return model_type
    elif "num_hidden_groups" in values:
        return "albert"
    else:
        return "electra" if "embedding_size" in values else "bert"
    if found not in MODEL_TYPES:
        raise UserError(_unsupported(found))
    return found


def _unsupported(model_type: object) -> str:
    """The message on an architecture that the encoder is not."""
    why = f" ({OTHERS[str(model_type)]})" if str(model_type) in OTHERS else ""
    return (
        f"model_type is {model_type!r}{why}; supported are {', '.join(MODEL_TYPES)}, "
        "as other architectures have other weights and inputs"
    )


def _check_type(name: str, kind: Any, value: Any) -> None:
    """Raises UserError unless `value` suits the field (`kind` as annotated)."""
    if kind == "int | None" and value is None:
        return
    if kind in ("int", "int | None"):
        least = 0 if name == "type_vocab_size" else 1
        if type(value) is not int or value < least:
            expected = "an integer of 0 or more" if not least else "a positive integer"
            raise UserError(f"{name} must be {expected}, found {value!r}")
    elif kind == "float":
        if type(value) not in (int, float) or not 0 <= value < 1:
            raise UserError(f"{name} must be a number in [0, 1), found {value!r}")
    elif not isinstance(value, str):
        raise UserError(f"{name} must be a string, found {value!r}")
