"""Writes the fine-tuned encoder as a Hugging Face directory, with the head beside."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import tensorflow as tf

from bert_export.errors import StageError, UserError
from bert_export.export import saved_model
from bert_export.export.linker_graph import TrainedLinker
from bert_export.features.spec import FeatureSpec
from bert_export.features.tokenizer import (
    MAX_BYTES_PER_WORD,
    SUFFIX_INDICATOR,
    WordPiece,
)
from bert_export.files import write_json
from bert_export.modeling import layouts, weights
from bert_export.modeling.bert_config import DISTILBERT_KEYS, BertConfig
from bert_export.modeling.linker import Linker
from bert_export.training.model_fn import compute_logits, to_predictions

WEIGHTS_FILE = "model.safetensors"
HEAD_FILE = "linker_head.safetensors"
CONFIG_FILE = "config.json"
# What transformers' classes are called, by our config's model_type.
_CLASSES = {
    "bert": "BertModel",
    "albert": "AlbertModel",
    "electra": "ElectraModel",
    "distilbert": "DistilBertModel",
}
# Without it transformers refuses a file.
_METADATA = {"format": "pt"}
# Masked words; a linker has no use for it, but language models are trained on.
_MASK = "[MASK]"
# sentence-transformers' modules, and where the second one's config is.
_MODELS = "sentence_transformers.models"
_POOLING = "1_Pooling"
_HEAD_KERNEL, _HEAD_BIAS = "linker/kernel", "linker/bias"
# Parts of the model card.
_INPUTS = """\
tokenizer = AutoTokenizer.from_pretrained(directory)
inputs = tokenizer(texts, candidates, padding=True, return_tensors="pt")"""
_INPUTS_OF_PIECES = """\
# Ids of [CLS] text [SEP] candidate [SEP], the texts' cut by the sentencepiece library
# with spiece.model; token_type_ids are 0 up to the first [SEP] and then 1.
inputs = {
    "input_ids": input_ids,
    "attention_mask": attention_mask,
    "token_type_ids": token_type_ids,
}"""
_EMBEDDINGS = """
`SentenceTransformer(directory)` embeds a text as its state at [CLS]. The model was
trained to compare pairs that it reads together; embeddings of single texts are a start
for further training and no linker.
"""


def write(
    model: TrainedLinker,
    staging: Path,
    precision: str,
    calibration: list[dict[str, np.ndarray]],
) -> list[str]:
    """Writes what transformers and sentence-transformers load; neither is needed.

    `model.safetensors` has the encoder under the names that its class in transformers
    gives them; `linker_head.safetensors` the head as a torch.nn.Linear has it: `weight`
    [2, (1 + spans) * hidden] and `bias` [2].

    Args:
      model: what to write.
      staging: an existing directory.
      precision: float32.
      calibration: not needed for it.

    Returns:
      What is lost, in sentences.

    Raises:
      StageError: the precision is another.
    """
    del calibration
    if precision != "float32":
        raise StageError(f"huggingface: there is no precision {precision}")
    reader = tf.train.load_checkpoint(model.checkpoint)
    head = {
        "weight": np.ascontiguousarray(reader.get_tensor(_HEAD_KERNEL).T),
        "bias": reader.get_tensor(_HEAD_BIAS),
    }
    safetensors.numpy.save_file(head, staging / HEAD_FILE, _METADATA)
    encoder = _encoder_tensors(model, reader)
    safetensors.numpy.save_file(encoder, staging / WEIGHTS_FILE, _METADATA)
    write_json(staging / CONFIG_FILE, transformers_config(model.bert))
    tokenizer = model.tokenizer
    (staging / tokenizer.file_name).write_bytes(tokenizer.content)
    if isinstance(tokenizer, WordPiece):
        _write_tokenizer(model, tokenizer, staging)
        _write_sentence_transformers(model, staging)
    (staging / "README.md").write_text(_model_card(model), encoding="utf-8")
    notes = ["the linker's head is in linker_head.safetensors, which nothing loads"]
    if not isinstance(tokenizer, WordPiece):
        notes.append(
            "transformers has no tokenizer that reads every SentencePiece model as its "
            "own library does: use that library with spiece.model"
        )
    if model.bert.model_type in ("bert", "albert"):
        notes.append(
            "transformers makes up a pooler, which a fine-tuned linker has not; "
            "pooler_output means nothing"
        )
    return notes


def reload(directory: Path, spec: FeatureSpec) -> Any:
    """A linker of what is in a directory, read as any Hugging Face weights are.

    Args:
      directory: what `write` wrote.
      spec: the features.

    Returns:
      A concrete function from features, int64, sequences [rows, length] and span
      positions [rows], to `probabilities` [rows, 2] and `score` [rows].

    Raises:
      UserError: a file is missing, damaged or does not fit the others.
    """
    linker = Linker(
        BertConfig.from_json(directory / CONFIG_FILE), len(spec.span_fields)
    )
    with tempfile.TemporaryDirectory() as temporary:
        prefix = weights.prepare_checkpoint(str(directory), Path(temporary))
        weights.initialize(prefix, linker.encoder.variables)
    try:
        head = safetensors.numpy.load_file(directory / HEAD_FILE)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{directory / HEAD_FILE}: cannot read the head, the file may be "
            f"incomplete: {error}"
        ) from error
    linker.head.kernel.assign(head["weight"].T)
    linker.head.bias.assign(head["bias"])

    def tensors(**features: tf.Tensor) -> dict[str, tf.Tensor]:
        return to_predictions(compute_logits(linker, spec, spec.check(features)))

    function = tf.function(tensors, autograph=False).get_concrete_function(
        **{
            name: tf.TensorSpec(
                [None] if name in spec.span_fields else [None, None], tf.int64, name
            )
            for name in saved_model.serving_input_names(spec)
        }
    )
    # It keeps its variables only as weak references.
    function.linker = linker
    return function


def transformers_config(bert: BertConfig) -> dict[str, Any]:
    """The config.json from which transformers makes the same encoder."""
    values = {
        "vocab_size": bert.vocab_size,
        "hidden_size": bert.hidden_size,
        "num_hidden_layers": bert.num_hidden_layers,
        "num_attention_heads": bert.num_attention_heads,
        "intermediate_size": bert.intermediate_size,
        "max_position_embeddings": bert.max_position_embeddings,
        "hidden_act": bert.hidden_act,
        "hidden_dropout_prob": bert.hidden_dropout_prob,
        "attention_probs_dropout_prob": bert.attention_probs_dropout_prob,
        "initializer_range": bert.initializer_range,
        "layer_norm_eps": bert.layer_norm_eps,
    }
    if bert.model_type == "distilbert":
        theirs = {ours: name for name, ours in DISTILBERT_KEYS.items()}
        values = {theirs.get(name, name): value for name, value in values.items()}
        # A constant of transformers' code.
        del values["layer_norm_eps"]
    else:
        values["type_vocab_size"] = bert.type_vocab_size
    if bert.model_type in ("albert", "electra"):
        values["embedding_size"] = bert.embedding_size or bert.hidden_size
    if bert.model_type == "albert":
        values["num_hidden_groups"] = bert.num_hidden_groups
        values["inner_group_num"] = bert.inner_group_num
    return {
        "architectures": [_CLASSES[bert.model_type]],
        "model_type": bert.model_type,
        **values,
        "torch_dtype": "float32",
    }


def _encoder_tensors(
    model: TrainedLinker, reader: tf.train.CheckpointReader
) -> dict[str, np.ndarray]:
    """The encoder's weights as transformers' class names and lays them out."""
    with tf.Graph().as_default():
        linker = Linker(model.bert, len(model.spec.span_fields))
        names = [variable.op.name for variable in linker.encoder.variables]
    tensors = {}
    for name in names:
        theirs, transform = layouts.from_ours(
            f"huggingface_{model.bert.model_type}", name
        )
        array = transform.from_ours(
            reader.get_tensor(name), model.bert.num_attention_heads
        )
        tensors[theirs] = np.ascontiguousarray(array)
    return tensors


def _write_tokenizer(model: TrainedLinker, tokenizer: WordPiece, staging: Path) -> None:
    """Writes what makes transformers' AutoTokenizer of a vocabulary."""
    features = model.features
    specials: dict[str, str] = {
        key: getattr(features, key)
        for key in ("cls_token", "sep_token", "pad_token", "unk_token")
    }
    has_mask = tokenizer.id_of(_MASK) is not None
    if has_mask:
        specials["mask_token"] = _MASK
    write_json(staging / "special_tokens_map.json", specials)
    config = {
        **specials,
        # Else one that the vocabulary lacks gets an id beyond the embeddings.
        **({} if has_mask else {"mask_token": None}),
        # As everywhere here, "[SEP]" in a text is not the special token.
        "split_special_tokens": True,
        "do_lower_case": features.lower_case,
        "model_max_length": model.bert.max_position_embeddings,
        "tokenizer_class": "BertTokenizer",
        "strip_accents": None,
        "tokenize_chinese_chars": True,
    }
    write_json(staging / "tokenizer_config.json", config)
    write_json(
        staging / "tokenizer.json",
        _tokenizer_json(tokenizer.vocab, specials, features.lower_case),
    )


def _tokenizer_json(
    vocab: list[str], specials: dict[str, str], lower_case: bool
) -> dict[str, Any]:
    """BERT's WordPiece as the tokenizers library serializes it."""
    ids = {piece: index for index, piece in enumerate(vocab)}
    cls, sep = specials["cls_token"], specials["sep_token"]

    def special(token: str, segment: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": segment}}

    def sequence(name: str, segment: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": segment}}

    single = [special(cls, 0), sequence("A", 0), special(sep, 0)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": ids[token],
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token in sorted(specials.values(), key=lambda token: ids[token])
        ],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": lower_case,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, sequence("B", 1), special(sep, 1)],
            "special_tokens": {
                token: {"id": token, "ids": [ids[token]], "tokens": [token]}
                for token in (cls, sep)
            },
        },
        "decoder": {"type": "WordPiece", "prefix": SUFFIX_INDICATOR, "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": specials["unk_token"],
            "continuing_subword_prefix": SUFFIX_INDICATOR,
            "max_input_chars_per_word": MAX_BYTES_PER_WORD,
            "vocab": ids,
        },
    }


def _write_sentence_transformers(model: TrainedLinker, staging: Path) -> None:
    """Writes what makes the state at [CLS] a sentence's embedding."""
    write_json(
        staging / "modules.json",
        [
            {"idx": n, "name": str(n), "path": path, "type": f"{_MODELS}.{name}"}
            for n, (path, name) in enumerate(
                [("", "Transformer"), (_POOLING, "Pooling")]
            )
        ],
    )
    write_json(
        staging / "sentence_bert_config.json",
        {"max_seq_length": model.features.max_seq_length, "do_lower_case": False},
    )
    (staging / _POOLING).mkdir()
    write_json(
        staging / _POOLING / "config.json",
        {
            "word_embedding_dimension": model.bert.hidden_size,
            "pooling_mode_cls_token": True,
            "pooling_mode_mean_tokens": False,
        },
    )


def _model_card(model: TrainedLinker) -> str:
    """README.md: what this is, and how to score pairs with it."""
    bert, spans = model.bert, list(model.spec.span_fields)
    word_pieces = isinstance(model.tokenizer, WordPiece)
    reads = ", ".join(["[CLS]", *spans])
    return f"""\
---
library_name: transformers
tags:
- entity-linking
---

# The encoder of an entity linker

A BERT cross-encoder ({bert.model_type}, {bert.num_hidden_layers} layers, hidden size
{bert.hidden_size}), fine-tuned to tell whether a candidate's description is of the
entity that a text mentions. It reads `[CLS] text [SEP] candidate [SEP]`, at most
{model.features.max_seq_length} tokens.

`AutoModel.from_pretrained(directory)` loads the encoder. The linker's head is a
`torch.nn.Linear({(1 + len(spans)) * bert.hidden_size}, 2)` in `{HEAD_FILE}`.
It reads the last hidden states at {reads}, joined; its second output
less its first is the score of a pair, the log odds of a link.

```python
from safetensors.torch import load_file
from transformers import AutoModel{", AutoTokenizer" if word_pieces else ""}
import torch

encoder = AutoModel.from_pretrained(directory).eval()
weights = load_file(f"{{directory}}/{HEAD_FILE}")
head = torch.nn.Linear(*reversed(weights["weight"].shape))
head.load_state_dict(weights)

{_INPUTS if word_pieces else _INPUTS_OF_PIECES}
with torch.no_grad():
    states = encoder(**inputs).last_hidden_state  # [pairs, length, hidden]
    rows = torch.arange(len(states))
    reads = [states[rows, at] for at in ({_read_positions(spans)})]
    logits = head(torch.cat(reads, dim=-1))
scores = logits[:, 1] - logits[:, 0]
```
{_span_note(spans)}{_EMBEDDINGS if word_pieces else ""}"""


def _read_positions(spans: list[str]) -> str:
    return ", ".join(["torch.zeros_like(rows)", *spans]) + ("" if spans else ",")


def _span_note(spans: list[str]) -> str:
    if not spans:
        return ""
    return (
        f"\n`{spans[0]}` and `{spans[1]}` [pairs] are the positions, among a pair's "
        "tokens, of the mention's first and last word piece.\n"
    )
