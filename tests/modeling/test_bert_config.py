"""BERT config files: Google's, Hugging Face's, and wrong ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from bert_export.errors import UserError
from bert_export.modeling.bert_config import BertConfig

GOOGLE = {
    "attention_probs_dropout_prob": 0.2,
    "directionality": "bidi",
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "type_vocab_size": 2,
    "vocab_size": 21128,
}


def write(directory: Path, values: Any) -> Path:
    path = directory / "bert_config.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def test_googles_file(tmp_path: Path):
    config = BertConfig.from_json(write(tmp_path, GOOGLE))
    assert config == BertConfig(
        vocab_size=21128,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        max_position_embeddings=512,
        attention_probs_dropout_prob=0.2,
    )
    assert config.layer_norm_eps == 1e-12
    assert config.head_size == 64


def test_hugging_faces_file(tmp_path: Path):
    extra = {
        "model_type": "bert",
        "layer_norm_eps": 1e-7,
        "architectures": ["BertModel"],
    }
    config = BertConfig.from_json(write(tmp_path, GOOGLE | extra))
    assert config.layer_norm_eps == 1e-7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "roberta"},
            r"model_type is 'roberta' \(byte-level BPE.*\); supported are bert, "
            "albert, electra, distilbert",
        ),
        ({"model_type": "xlm-roberta"}, r"'xlm-roberta' \(SentencePiece ids shifted"),
        ({"model_type": "deberta-v2"}, r"'deberta-v2' \(attention by relative"),
        ({"model_type": "mpnet"}, "model_type is 'mpnet'"),
        ({"model_type": "t5"}, "model_type is 't5'"),
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"model_type": "of tomorrow"}, "'of tomorrow'; supported are bert"),
        ({"model_type": None}, "model_type is None; supported are bert"),
        ({"model_type": ["bert"]}, r"model_type is \['bert'\]; supported are bert"),
        ({"architectures": ["RobertaForMaskedLM"]}, "'RobertaForMaskedLM'; supported"),
        ({"architectures": "x"}, "supported are bert"),
        ({"is_decoder": True}, "is_decoder is true; only encoders"),
        ({"type_vocab_size": 1}, "type_vocab_size is 1, but pairs have two segments"),
        ({"type_vocab_size": -1}, "type_vocab_size must be an integer of 0 or more"),
        ({"num_hidden_groups": 13}, "num_hidden_groups is 13; expected at most"),
        ({"num_hidden_groups": "1"}, "num_hidden_groups must be a positive integer"),
        (
            {"model_type": "albert", "num_hidden_groups": None},
            "num_hidden_groups is None, but model_type is 'albert'",
        ),
        ({"embedding_size": 0}, "embedding_size must be a positive integer"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; supported are 'gelu'"),
        ({"hidden_size": 770}, "hidden_size 770 is not a multiple"),
        ({"hidden_size": "768"}, "hidden_size must be a positive integer, found '768'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer"),
        ({"vocab_size": True}, "vocab_size must be a positive integer"),
        (
            {"hidden_dropout_prob": 1},
            r"hidden_dropout_prob must be a number in \[0, 1\)",
        ),
        ({"hidden_act": None}, "hidden_act must be a string"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, change: dict[str, Any], message: str):
    path = write(tmp_path, GOOGLE | change)
    with pytest.raises(UserError, match=message) as caught:
        BertConfig.from_json(path)
    assert str(path) in str(caught.value)


def test_missing_sizes_are_listed(tmp_path: Path):
    values = {k: v for k, v in GOOGLE.items() if k not in ("vocab_size", "hidden_size")}
    with pytest.raises(UserError, match="lacks vocab_size, hidden_size"):
        BertConfig.from_json(write(tmp_path, values))


@pytest.mark.parametrize("text", ["{", "[1]", "\xff"])
def test_what_is_no_json_object_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"config\.json"):
        BertConfig.from_json(path)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"nowhere\.json"):
        BertConfig.from_json(tmp_path / "nowhere.json")


SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 24,
    "vocab_size": 60,
}
DISTILBERT = {
    "activation": "gelu_new",
    "attention_dropout": 0.2,
    "dim": 16,
    "dropout": 0.3,
    "hidden_dim": 32,
    "initializer_range": 0.05,
    "max_position_embeddings": 24,
    "model_type": "distilbert",
    "n_heads": 2,
    "n_layers": 4,
    "sinusoidal_pos_embds": False,
    "vocab_size": 60,
}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # transformers' defaults are ALBERT's and not BERT's.
        (
            SIZES | {"model_type": "albert"},
            BertConfig(
                **SIZES,
                model_type="albert",
                hidden_act="gelu_new",
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                embedding_size=128,
                num_hidden_groups=1,
            ),
        ),
        (
            SIZES
            | {"model_type": "albert", "embedding_size": 16, "num_hidden_groups": 2}
            | {"inner_group_num": 3, "hidden_act": "gelu", "hidden_dropout_prob": 0.1},
            BertConfig(
                **SIZES,
                model_type="albert",
                hidden_act="gelu",
                hidden_dropout_prob=0.1,
                attention_probs_dropout_prob=0.0,
                # Of the hidden size, and yet there is a dense layer.
                embedding_size=16,
                num_hidden_groups=2,
                inner_group_num=3,
            ),
        ),
        # Google's ALBERT: what it calls gelu is computed by tanh.
        (
            SIZES
            | {"num_hidden_groups": 1, "embedding_size": 8, "hidden_act": "gelu"}
            | {"net_structure_type": 0, "hidden_dropout_prob": 0, "gap_size": 0}
            | {"attention_probs_dropout_prob": 0, "down_scale_factor": 1},
            BertConfig(
                **SIZES,
                model_type="albert",
                hidden_act="gelu_new",
                hidden_dropout_prob=0,
                attention_probs_dropout_prob=0,
                embedding_size=8,
                num_hidden_groups=1,
            ),
        ),
        (
            SIZES | {"model_type": "electra", "embedding_size": 8},
            BertConfig(**SIZES, model_type="electra", embedding_size=8),
        ),
        (
            SIZES | {"model_type": "electra", "embedding_size": 16},
            BertConfig(**SIZES, model_type="electra"),
        ),
        (
            SIZES | {"embedding_size": 8},
            BertConfig(**SIZES, model_type="electra", embedding_size=8),
        ),
        (
            DISTILBERT,
            BertConfig(
                **SIZES,
                model_type="distilbert",
                type_vocab_size=0,
                hidden_act="gelu_new",
                hidden_dropout_prob=0.3,
                attention_probs_dropout_prob=0.2,
                initializer_range=0.05,
            ),
        ),
        # Files of 2019.
        (
            SIZES | {"architectures": ["AlbertForMaskedLM"], "hidden_act": "gelu"},
            BertConfig(
                **SIZES,
                model_type="albert",
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                embedding_size=128,
                num_hidden_groups=1,
            ),
        ),
        (SIZES | {"architectures": ["BertForPreTraining"]}, BertConfig(**SIZES)),
    ],
)
def test_variants(tmp_path: Path, values: dict[str, Any], expected: BertConfig):
    config = BertConfig.from_json(write(tmp_path, values))
    assert config == expected
    # Written out and read again, it is the same.
    again = BertConfig.from_json(write(tmp_path, dataclasses.asdict(config)))
    assert again == config


def test_missing_sizes_have_the_names_of_the_others(tmp_path: Path):
    values = {key: value for key, value in DISTILBERT.items() if key != "dim"}
    with pytest.raises(UserError, match="lacks hidden_size"):
        BertConfig.from_json(write(tmp_path, values))


def test_properties():
    albert = BertConfig(
        **SIZES, model_type="albert", num_hidden_groups=1, embedding_size=8
    )
    assert albert.embedding_width == 8
    assert BertConfig(**SIZES).embedding_width == 16
    for activation, by_tanh in (
        ("gelu", False),
        ("gelu_new", True),
        ("gelu_pytorch_tanh", True),
    ):
        assert BertConfig(**SIZES, hidden_act=activation).approximate_gelu == by_tanh


@pytest.mark.parametrize("model_type", ["bert", "electra", "distilbert"])
def test_only_albert_has_groups(model_type: str):
    with pytest.raises(UserError, match="num_hidden_groups is 1, but model_type is"):
        BertConfig(**SIZES, model_type=model_type, num_hidden_groups=1)
    with pytest.raises(UserError, match="model_type is 'roberta'"):
        BertConfig(**SIZES, model_type="roberta")
