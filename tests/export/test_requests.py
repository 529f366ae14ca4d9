"""Golden and warm-up requests."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from bert_export.errors import StageError
from bert_export.export import requests
from tests import tiny_artifact


def record(examples):
    trained = tiny_artifact.trained()
    return requests.record_golden(
        trained.estimator, trained.checkpoint, examples, trained.spec
    )


def test_golden_requests_are_the_examples_in_order_with_exact_floats(tmp_path):
    trained = tiny_artifact.trained()
    golden = record(trained.examples)
    path = requests.write_golden(tmp_path, golden)
    assert path == tmp_path / "assets.extra" / "golden_requests.json"
    read = json.loads(path.read_text())["requests"]
    assert [base64.b64decode(r["example"]) for r in read] == trained.examples

    def input_fn():
        # In another batch size; rows do not depend on it.
        serialized = tf.data.Dataset.from_tensor_slices(trained.examples).batch(32)
        return serialized.map(
            lambda batch: trained.spec.parse(batch, trained.spec.parsing_spec())
        )

    predicted = list(trained.estimator.predict(input_fn))
    for request, row in zip(read, predicted):
        np.testing.assert_allclose(
            request["probabilities"], row["probabilities"], atol=1e-6
        )
        np.testing.assert_allclose(request["score"], row["score"], atol=1e-5)
    exact = golden["requests"]
    for request, recorded in zip(read, exact):
        assert request == recorded
        assert np.float32(request["score"]) == request["score"]
    # The tiny model tells the examples apart, else a replay would prove nothing.
    assert np.std([request["score"] for request in exact]) > 0.1


def test_examples_need_no_label():
    trained = tiny_artifact.trained()
    labelled = tiny_artifact.make_examples(trained.spec, 3)
    without = tiny_artifact.make_examples(trained.spec, 3, label=False)
    for count in range(1, 4):
        examples = without[:count]
        assert len(record(examples)["requests"]) == count
    assert b"label_ids" in labelled[0]
    assert b"label_ids" not in without[0]


def test_no_examples():
    with pytest.raises(StageError, match="no example"):
        record([])


def test_a_model_of_nan_is_not_fit_to_be_exported(tmp_path):
    trained = tiny_artifact.trained()
    reader = tf.train.load_checkpoint(trained.checkpoint)
    names = sorted(reader.get_variable_to_shape_map())
    values = {name: reader.get_tensor(name) for name in names}
    values["linker/bias"] = np.full_like(values["linker/bias"], np.nan)
    prefix = str(tmp_path / "model.ckpt-2")
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[values[name] for name in names],
    )
    with pytest.raises(StageError, match="golden request 0") as caught:
        requests.record_golden(
            trained.estimator, prefix, trained.examples[:2], trained.spec
        )
    assert prefix in str(caught.value)


def test_warmup_requests_are_tf_servings_protos(tmp_path):
    trained = tiny_artifact.trained()
    path = requests.write_warmup(tmp_path, "linker", trained.examples[:3], trained.spec)
    assert path == tmp_path / "assets.extra" / "tf_serving_warmup_requests"
    records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    logs = [prediction_log_pb2.PredictionLog.FromString(record) for record in records]
    examples, tensors = (log.predict_log.request for log in logs)
    assert examples.model_spec.name == tensors.model_spec.name == "linker"
    assert examples.model_spec.signature_name == "serving_default"
    assert tensors.model_spec.signature_name == "tensors"
    assert list(examples.inputs) == ["examples"]
    assert tf.make_ndarray(examples.inputs["examples"]).tolist() == trained.examples[:3]
    parsed = trained.spec.parse(
        tf.constant(trained.examples[:3]), trained.spec.parsing_spec()
    )
    assert set(tensors.inputs) == set(parsed) - {"label_ids"}
    for name, value in tensors.inputs.items():
        np.testing.assert_array_equal(tf.make_ndarray(value), parsed[name])
