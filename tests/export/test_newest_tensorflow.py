"""TensorFlow's artifacts in a TensorFlow newer than the exporting one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from bert_export.export import frozen_graph, linker_graph, serving_model
from bert_export.features.pairs import PairEncoder
from bert_export.features.spec import FeatureSpec
from tests import environments, tiny_text

TENSORFLOW = "2.21.0"
TENSORFLOW_TEXT = "2.21.1"
SCRIPT = Path(__file__).with_name("load_in_newest_tensorflow.py")
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of an environment with the newest TensorFlow."""
    return environments.interpreter(
        f"tensorflow=={TENSORFLOW}", f"tensorflow-text=={TENSORFLOW_TEXT}"
    )


def requests(spec: FeatureSpec) -> dict[str, dict[str, tuple[str, Any]]]:
    """Inputs by signature: dtype and value by name."""
    pairs = tiny_text.pairs()
    text = {
        "text": ("string", [mention.text for mention, _ in pairs]),
        "mention_start": ("int64", [mention.start for mention, _ in pairs]),
        "mention_end": ("int64", [mention.end for mention, _ in pairs]),
        "candidate": ("string", [candidate for _, candidate in pairs]),
    }
    link = {
        "text": ("string", pairs[0][0].text),
        "mention_start": ("int64", pairs[0][0].start),
        "mention_end": ("int64", pairs[0][0].end),
        "candidates": ("string", [candidate for _, candidate in pairs]),
    }
    encoder = PairEncoder(tiny_text.TOKENIZER, tiny_text.FEATURES)
    encoded = encoder(*(tf.constant(value) for _, value in text.values()))
    features = {
        spec.input_ids: encoded.input_ids.to_tensor(),
        spec.input_mask: tf.ones_like(encoded.input_ids).to_tensor(),
        spec.segment_ids: encoded.segment_ids.to_tensor(),
        **dict(zip(spec.span_fields, (encoded.start_ps, encoded.end_ps))),
    }
    tensors = {name: ("int64", t.numpy().tolist()) for name, t in features.items()}
    return {"text": text, "link": link, "tensors": tensors}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_same_numbers(python, tmp_path, precision):
    model = tiny_text.shared()
    artifact = tmp_path / "serving_model"
    artifact.mkdir()
    serving_model.write(model, artifact, precision, [])
    frozen_graph.write(model, tmp_path, precision, [])
    inputs = requests(model.spec)
    (tmp_path / "inputs.json").write_text(json.dumps(inputs))

    process = environments.run(python, "-I", SCRIPT, tmp_path)
    assert process.returncode == 0, process.stderr[-3000:]
    found = json.loads((tmp_path / "outputs.json").read_text())
    assert found["versions"] == [TENSORFLOW, TENSORFLOW_TEXT]
    assert tf.__version__ != TENSORFLOW

    loaded = tf.saved_model.load(str(artifact))
    for signature in ("text", "link", "tensors"):
        tensors = {
            name: tf.constant(value, dtype)
            for name, (dtype, value) in inputs[signature].items()
        }
        compare(found[signature], loaded.signatures[signature](**tensors))
    compare(
        found["frozen_graph"], frozen_outputs(tmp_path / "frozen_graph.pb", tensors)
    )
    scores = found["tensors"]["score"]
    # A model that answers everything alike would prove nothing.
    assert np.std(scores) > 0.1
    np.testing.assert_allclose(found["text"]["score"], scores, atol=TOLERANCE)


def frozen_outputs(path: Path, tensors: dict[str, tf.Tensor]) -> dict[str, np.ndarray]:
    """What a frozen graph answers in this process's TensorFlow."""
    graph_def = tf.compat.v1.GraphDef.FromString(path.read_bytes())
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.import_graph_def(graph_def, name="")
        feed = {f"{name}:0": value.numpy() for name, value in tensors.items()}
        return session.run({name: f"{name}:0" for name in linker_graph.OUTPUTS}, feed)


def compare(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=TOLERANCE, rtol=TOLERANCE)
