"""A trained pair classifier as the peers' own classifiers, with the same scores.

Ours reads the last hidden state x at [CLS] alone; theirs pass it through a pooler
first, tanh(W x + b). A pooler of W = εI and b = 0 gives tanh(εx), which is εx but for a
part of (εx)²/3; the classifier behind it divides by ε again.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import safetensors.numpy
import tensorflow as tf

from bert_export.errors import UserError
from bert_export.export import huggingface
from bert_export.export.linker_graph import TrainedLinker
from bert_export.files import write_json
from bert_export.modeling.linker import Linker

# Hidden states at [CLS] are at most about 10: a part of 3e-5.
EPSILON = 1e-3
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
GOOGLE_CHECKPOINT = "bert_model.ckpt"
GOOGLE_CONFIG = "bert_config.json"


def write(model: TrainedLinker, directory: Path) -> None:
    """Writes what BertForSequenceClassification and CrossEncoder load.

    It has one label, whose logit is our score: the link's logit less the other.

    Args:
      model: a pair classifier of the BERT architecture, without span fields.
      directory: is made.

    Raises:
      UserError: the model is another.
    """
    kernel, bias = _head(model)
    directory.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as temporary:
        exported = Path(temporary)
        huggingface.write(model, exported, "float32", [])
        encoder = safetensors.numpy.load_file(exported / huggingface.WEIGHTS_FILE)
        for name in (*TOKENIZER_FILES, "vocab.txt"):
            shutil.copy(exported / name, directory)
    hidden = model.bert.hidden_size
    tensors = {
        **{f"bert.{name}": array for name, array in encoder.items()},
        "bert.pooler.dense.weight": _pooler(hidden),
        "bert.pooler.dense.bias": np.zeros(hidden, np.float32),
        "classifier.weight": (kernel[:, 1] - kernel[:, 0])[np.newaxis] / EPSILON,
        "classifier.bias": bias[1:] - bias[:1],
    }
    safetensors.numpy.save_file(
        tensors, directory / huggingface.WEIGHTS_FILE, {"format": "pt"}
    )
    write_json(
        directory / huggingface.CONFIG_FILE,
        {
            **huggingface.transformers_config(model.bert),
            "architectures": ["BertForSequenceClassification"],
            "id2label": {"0": "LABEL_0"},
            "label2id": {"LABEL_0": 0},
        },
    )


def write_google(model: TrainedLinker, directory: Path) -> None:
    """Writes a checkpoint of google-research BERT's classifier with two labels.

    Beside it are `bert_config.json` and `vocab.txt`.

    Args:
      model: as for `write`.
      directory: is made.

    Raises:
      UserError: the model is another.
    """
    kernel, bias = _head(model)
    directory.mkdir(parents=True)
    hidden = model.bert.hidden_size
    reader = tf.train.load_checkpoint(model.checkpoint)
    with tf.Graph().as_default():
        linker = Linker(model.bert, num_span_fields=0)
        names = [variable.op.name for variable in linker.encoder.variables]
    arrays = {
        **{name: reader.get_tensor(name) for name in names},
        "bert/pooler/dense/kernel": _pooler(hidden),
        "bert/pooler/dense/bias": np.zeros(hidden, np.float32),
        "output_weights": kernel.T / EPSILON,
        "output_bias": bias,
        # An Estimator wants to know how far its checkpoint was trained.
        "global_step": np.zeros([], np.int64),
    }
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        # Fed, as a graph holds at most 2 GB of constants.
        feeds = {}
        variables = {}
        for name, array in arrays.items():
            value = tf.compat.v1.placeholder(array.dtype, array.shape)
            variables[name] = tf.compat.v1.Variable(value)
            feeds[value] = array
        session.run(tf.compat.v1.global_variables_initializer(), feeds)
        tf.compat.v1.train.Saver(variables).save(
            session, str(directory / GOOGLE_CHECKPOINT), write_meta_graph=False
        )
    config = huggingface.transformers_config(model.bert)
    for key in ("architectures", "model_type", "torch_dtype"):
        del config[key]
    write_json(directory / GOOGLE_CONFIG, config)
    (directory / "vocab.txt").write_bytes(model.tokenizer.content)


def _head(model: TrainedLinker) -> tuple[np.ndarray, np.ndarray]:
    """The head's kernel [hidden, 2] and bias [2]."""
    if model.bert.model_type != "bert" or model.spec.span_fields:
        raise UserError(
            "the peers' classifiers are of the BERT architecture and read [CLS] alone; "
            "train one with configs/benchmark.py"
        )
    reader = tf.train.load_checkpoint(model.checkpoint)
    return reader.get_tensor("linker/kernel"), reader.get_tensor("linker/bias")


def _pooler(hidden: int) -> np.ndarray:
    """[hidden, hidden], the same transposed."""
    return (EPSILON * np.eye(hidden)).astype(np.float32)
