"""The SavedModel: signatures, tags, and the models it can be made of."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from bert_export.config import FeaturesConfig
from bert_export.errors import StageError
from bert_export.export import saved_model
from bert_export.verification import smoke_test
from tests import tiny_artifact


def results(artifact: Path) -> dict[str, str]:
    checks = smoke_test.check_artifact(artifact)
    return {check["name"]: check["result"] + ": " + check["detail"] for check in checks}


def assert_passes(artifact: Path) -> None:
    found = results(artifact)
    assert not {n: r for n, r in found.items() if not r.startswith("passed")}


def read_saved_model(artifact: Path) -> saved_model_pb2.SavedModel:
    data = (artifact / "saved_model.pb").read_bytes()
    return saved_model_pb2.SavedModel.FromString(data)


def test_two_signatures_and_one_tag():
    (meta_graph,) = read_saved_model(tiny_artifact.artifact()).meta_graphs
    assert set(meta_graph.signature_def) == {"serving_default", "tensors"}
    assert list(meta_graph.meta_info_def.tags) == ["serve"]


def test_nothing_of_the_exporting_machine_is_left_in_the_graph():
    data = (tiny_artifact.artifact() / "saved_model.pb").read_bytes()
    trained = tiny_artifact.trained()
    for path in (trained.checkpoint, trained.vocab, Path(saved_model.__file__)):
        assert os.fsencode(Path(path).parent) not in data


def test_only_the_artifacts_files_are_written(tmp_path):
    files = {
        path.relative_to(tiny_artifact.artifact()).as_posix()
        for path in tiny_artifact.artifact().rglob("*")
        if path.is_file()
    }
    assert files == {
        "saved_model.pb",
        "variables/variables.data-00000-of-00001",
        "variables/variables.index",
        "assets.extra/vocab.txt",
        "assets.extra/golden_requests.json",
        "assets.extra/tf_serving_warmup_requests",
        "manifest.json",
    }


@pytest.mark.parametrize("spans", [("from", "to"), ()], ids=["spans", "no_spans"])
def test_configured_feature_names(tmp_path, spans):
    features = FeaturesConfig(
        max_seq_length=18,
        input_ids="ids",
        input_mask="mask",
        segment_ids="types",
        span_fields=spans,
        label_ids="gold",
    )
    trained = tiny_artifact.train(tmp_path, features)
    artifact = tiny_artifact.export(trained, tmp_path / "artifact")
    assert_passes(artifact)
    (meta_graph,) = read_saved_model(artifact).meta_graphs
    inputs = set(meta_graph.signature_def["tensors"].inputs)
    assert inputs == {"ids", "mask", "types", *spans}


def test_tpu_estimator_exports_for_cpus(tmp_path):
    trained = tiny_artifact.train(tmp_path, use_tpu=True)
    assert isinstance(trained.estimator, tf.compat.v1.estimator.tpu.TPUEstimator)
    assert_passes(tiny_artifact.export(trained, tmp_path / "artifact"))


def test_other_export_outputs_are_refused(tmp_path):
    trained = tiny_artifact.trained()

    def model_fn(features, labels, mode, params):
        spec = trained.estimator.model_fn(
            features, labels, mode, trained.estimator.config
        )
        outputs = {
            **spec.export_outputs,
            "more": spec.export_outputs["serving_default"],
        }
        return spec._replace(export_outputs=outputs)

    estimator = tf.compat.v1.estimator.Estimator(
        model_fn, trained.estimator.model_dir, params={}
    )
    with pytest.raises(StageError, match="'tensors:more'"):
        saved_model.export_saved_model(
            estimator, trained.spec, tmp_path, trained.checkpoint
        )


def test_a_prediction_that_needs_the_label_cannot_be_exported(tmp_path):
    trained = tiny_artifact.trained()

    def model_fn(features, labels, mode):
        return features[trained.spec.label_ids]

    estimator = tf.compat.v1.estimator.Estimator(model_fn, trained.estimator.model_dir)
    broken = dataclasses.replace(trained, estimator=estimator)
    with pytest.raises(KeyError, match="label_ids"):
        tiny_artifact.export(broken, tmp_path / "artifact")
