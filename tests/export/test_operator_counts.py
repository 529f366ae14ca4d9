"""How many of the costly operations a layer takes, in the frozen and the ONNX graph.

Each count here was measured to matter. Where one grows, time the model before and after
(scripts/benchmarks/scaling) before the number is changed.
"""

from __future__ import annotations

import collections
import dataclasses

import onnx
import pytest
import tensorflow as tf

from bert_export.config import FeaturesConfig
from bert_export.export import linker_graph
from bert_export.export import onnx as onnx_format
from bert_export.modeling.linker import Linker
from tests import tiny_artifact


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Linkers of 2 and 3 layers with random weights."""
    return [
        random_linker(layers, tmp_path_factory.mktemp("layers")) for layers in (2, 3)
    ]


def random_linker(layers, directory):
    bert = dataclasses.replace(tiny_artifact.BERT, num_hidden_layers=layers)
    features = FeaturesConfig(max_seq_length=20)
    prefix = str(directory / "random.ckpt")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        # Converters leave out what multiplies by 1 and adds 0, as new norms and biases
        # do, and trained ones do not.
        trained = [
            variable.assign_add(tf.random.normal(variable.shape))
            for variable in Linker(bert, len(features.span_fields)).variables
        ]
        session.run(tf.compat.v1.global_variables_initializer())
        session.run(trained)
        tf.compat.v1.train.Saver().save(session, prefix)
    return linker_graph.TrainedLinker(prefix, bert, features, tiny_artifact.TOKENIZER)


def layer_counts(two, three, kinds):
    """Operations of an inner layer, and of all that is there with two layers.

    A third layer comes between the first and the last one, of which only what is read
    is computed.
    """
    two, three = collections.Counter(two), collections.Counter(three)
    return {kind: (three[kind] - two[kind], two[kind]) for kind in kinds}


def test_frozen_graph(models):
    found = layer_counts(
        *(
            [node.op for node in linker_graph.freeze(model, checked=False).node]
            for model in models
        ),
        ["MatMul", "BatchMatMulV2", "Transpose", "GatherV2", "Softmax", "Erf"],
    )
    assert found == {
        "MatMul": (6, 13),
        "BatchMatMulV2": (2, 4),
        "Transpose": (4, 8),
        "GatherV2": (4, 13),
        "Softmax": (1, 3),
        "Erf": (1, 2),
    }


def test_onnx_graph(models, tmp_path):
    counts = []
    for model in models:
        directory = tmp_path / str(model.bert.num_hidden_layers)
        directory.mkdir()
        onnx_format.write(model, directory, "float32", [])
        graph = onnx.load(directory / onnx_format.MODEL_FILE).graph
        counts.append([node.op_type for node in graph.node])
    kinds = ["MatMul", "Transpose", "Gather", "LayerNormalization", "Softmax", "Erf"]
    assert layer_counts(*counts, kinds) == {
        "MatMul": (8, 17),
        "Transpose": (1, 7),
        "Gather": (4, 16),
        "LayerNormalization": (2, 5),
        "Softmax": (1, 3),
        "Erf": (1, 2),
    }
