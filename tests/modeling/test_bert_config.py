"""BERT config files: Google's, Hugging Face's, and wrong ones."""

from __future__ import annotations

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
        ({"model_type": "roberta"}, "model_type is 'roberta'"),
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'"),
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
