"""Defects planted in a good artifact, each found by the check that is meant to."""

from __future__ import annotations

import base64
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import saved_model_pb2

from bert_export.features.spec import FeatureSpec
from bert_export.release import manifest
from bert_export.verification import smoke_test
from tests import tiny_artifact


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A copy of the good artifact, to be spoilt."""
    return Path(shutil.copytree(tiny_artifact.artifact(), tmp_path / "artifact"))


def failures(artifact: Path) -> dict[str, str]:
    checks = smoke_test.check_artifact(artifact)
    return {c["name"]: c["detail"] for c in checks if c["result"] == "failed"}


def rehash(artifact: Path) -> None:
    """Makes the manifest agree with the files, so that their sums tell nothing."""
    content = manifest.read(artifact)
    content["files"] = manifest.list_files(artifact)
    manifest.write(artifact, content)


def edit_graph(artifact: Path, edit: Callable[[Any], None]) -> None:
    path = artifact / "saved_model.pb"
    saved_model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    edit(saved_model)
    path.write_bytes(saved_model.SerializeToString())
    rehash(artifact)


def replace_output(
    saved_model: Any, signature: str, name: str, op: str, dtype: int, **attrs: int
) -> None:
    """Puts an operation behind a signature's output."""
    meta_graph = saved_model.meta_graphs[0]
    info = meta_graph.signature_def[signature].outputs[name]
    node = meta_graph.graph_def.node.add(name=f"planted_{signature}_{name}", op=op)
    node.input.append(info.name)
    for key, value in attrs.items():
        node.attr[key].type = value
    info.name, info.dtype = f"{node.name}:0", dtype


def write_variables(artifact: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrites the variables in place."""
    prefix = str(artifact / "variables" / "variables")
    reader = tf.train.load_checkpoint(prefix)
    names = sorted(reader.get_variable_to_shape_map())
    values = {name: reader.get_tensor(name) for name in names}
    change(values)
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[values[name] for name in names],
    )
    rehash(artifact)


def edit_golden(artifact: Path, edit: Callable[[list[dict[str, Any]]], None]) -> None:
    path = artifact / smoke_test.GOLDEN
    golden = json.loads(path.read_text())
    edit(golden["requests"])
    path.write_text(json.dumps(golden, indent=1) + "\n")


def test_a_good_artifact_passes(artifact):
    checks = smoke_test.check_artifact(artifact)
    assert {check["result"] for check in checks} == {"passed"}
    names = [check["name"] for check in checks]
    assert len(set(names)) == len(names)


# --- files --------------------------------------------------------------------------


def test_truncated_variables(artifact):
    data = next((artifact / "variables").glob("*.data-*"))
    data.write_bytes(data.read_bytes()[:-1000])
    found = failures(artifact)
    assert data.name in found["files"]
    rehash(artifact)
    found = failures(artifact)
    assert "files" not in found
    assert "variables" in found


def test_altered_vocabulary(artifact):
    path = artifact / "assets.extra" / "vocab.txt"
    path.write_text(path.read_text().replace("w1\n", "w!\n"))
    found = failures(artifact)
    assert set(found) == {"files"}
    assert "assets.extra/vocab.txt was altered" in found["files"]


@pytest.mark.parametrize("name", ["vocab.txt", "tf_serving_warmup_requests"])
def test_missing_file(artifact, name):
    (artifact / "assets.extra" / name).unlink()
    assert f"assets.extra/{name} is missing" in failures(artifact)["files"]


def test_unexpected_file(artifact):
    (artifact / "assets.extra" / "notes.txt").write_text("by hand")
    found = failures(artifact)
    assert set(found) == {"files"}
    assert "assets.extra/notes.txt is not in the manifest" in found["files"]


def test_missing_graph(artifact):
    (artifact / "saved_model.pb").unlink()
    rehash(artifact)
    assert {"graph", "load"} <= set(failures(artifact))


@pytest.mark.parametrize("content", [None, "{", "[]", '{"format_version": 99}'])
def test_unreadable_manifest(artifact, content):
    if content is None:
        (artifact / "manifest.json").unlink()
    else:
        (artifact / "manifest.json").write_text(content)
    checks = smoke_test.check_artifact(artifact)
    assert checks[0]["name"] == "manifest"
    assert checks[0]["result"] == "failed"
    # What needs no manifest runs all the same.
    results = {check["name"]: check["result"] for check in checks}
    assert results["graph"] == results["load"] == "passed"
    assert results["files"] == results["replay:tensors:session"] == "skipped"


# --- signatures ---------------------------------------------------------------------


@pytest.mark.parametrize("signature", ["serving_default", "tensors"])
def test_renamed_output(artifact, signature):
    def edit(saved_model):
        outputs = saved_model.meta_graphs[0].signature_def[signature].outputs
        outputs["scores"].CopyFrom(outputs["score"])
        del outputs["score"]

    edit_graph(artifact, edit)
    found = failures(artifact)
    assert "output 'score' is missing" in found[f"signature:{signature}"]
    assert "unexpected output 'scores'" in found[f"signature:{signature}"]
    assert "no output 'score'" in found[f"replay:{signature}:session"]
    other = {"serving_default": "tensors", "tensors": "serving_default"}[signature]
    assert not any(other in name for name in found)


def test_float16_output(artifact):
    def edit(saved_model):
        half = types_pb2.DT_HALF
        for signature in ("serving_default", "tensors"):
            replace_output(
                saved_model,
                signature,
                "probabilities",
                "Cast",
                half,
                SrcT=types_pb2.DT_FLOAT,
                DstT=half,
            )

    edit_graph(artifact, edit)
    found = failures(artifact)
    for signature in ("serving_default", "tensors"):
        expected = "'probabilities' has dtype float16, expected float32"
        assert expected in found[f"signature:{signature}"]
        assert "is float16" in found[f"replay:{signature}:function"]


def test_rounded_output(artifact):
    """Through float16 and back: every name, dtype and shape is as promised."""

    def edit(saved_model):
        half, single = types_pb2.DT_HALF, types_pb2.DT_FLOAT
        args = (saved_model, "serving_default", "score", "Cast")
        replace_output(*args, half, SrcT=single, DstT=half)
        info = saved_model.meta_graphs[0].signature_def["serving_default"]
        graph = saved_model.meta_graphs[0].graph_def
        node = graph.node.add(name="planted_back", op="Cast")
        node.input.append(info.outputs["score"].name)
        node.attr["SrcT"].type, node.attr["DstT"].type = half, single
        info.outputs["score"].name = "planted_back:0"
        info.outputs["score"].dtype = single

    edit_graph(artifact, edit)
    found = failures(artifact)
    assert "score differs by" in found["replay:serving_default:session"]
    assert "signature:serving_default" not in found
    assert not any("tensors" in name for name in found)


def test_missing_signature(artifact):
    def edit(saved_model):
        del saved_model.meta_graphs[0].signature_def["tensors"]

    edit_graph(artifact, edit)
    found = failures(artifact)
    assert "signature 'tensors' is missing" in found["signatures"]
    assert found["signature:tensors"] == "missing"
    assert "replay:serving_default:session" not in found


def test_extra_signature(artifact):
    def edit(saved_model):
        signatures = saved_model.meta_graphs[0].signature_def
        signatures["debug"].CopyFrom(signatures["tensors"])

    edit_graph(artifact, edit)
    found = failures(artifact)
    assert set(found) == {"signatures"}
    assert "unexpected signature 'debug'" in found["signatures"]


def test_wrong_input_dtype(artifact):
    def edit(saved_model):
        inputs = saved_model.meta_graphs[0].signature_def["tensors"].inputs
        inputs["segment_ids"].dtype = types_pb2.DT_INT32

    edit_graph(artifact, edit)
    expected = "input 'segment_ids' has dtype int32, expected int64"
    assert expected in failures(artifact)["signature:tensors"]


def test_extra_and_renamed_inputs(artifact):
    def edit(saved_model):
        inputs = saved_model.meta_graphs[0].signature_def["tensors"].inputs
        inputs["label_ids"].CopyFrom(inputs["end_ps"])
        inputs["begin_ps"].CopyFrom(inputs["start_ps"])
        del inputs["start_ps"]

    edit_graph(artifact, edit)
    found = failures(artifact)["signature:tensors"]
    assert "input 'start_ps' is missing" in found
    assert "unexpected input 'begin_ps'" in found
    assert "unexpected input 'label_ids'" in found


def test_fixed_batch_size(artifact):
    def edit(saved_model):
        inputs = saved_model.meta_graphs[0].signature_def["serving_default"].inputs
        inputs["examples"].tensor_shape.dim[0].size = 32

    edit_graph(artifact, edit)
    expected = "input 'examples' has shape [32], expected [-1]"
    assert expected in failures(artifact)["signature:serving_default"]


def test_wrong_method(artifact):
    def edit(saved_model):
        signature = saved_model.meta_graphs[0].signature_def["tensors"]
        signature.method_name = "tensorflow/serving/classify"

    edit_graph(artifact, edit)
    assert "method" in failures(artifact)["signature:tensors"]


# --- TPU ----------------------------------------------------------------------------


def test_extra_tpu_graph(artifact):
    def edit(saved_model):
        tpu = saved_model.meta_graphs.add()
        tpu.CopyFrom(saved_model.meta_graphs[0])
        tpu.meta_info_def.tags.append("tpu")

    edit_graph(artifact, edit)
    found = failures(artifact)
    assert set(found) == {"graph"}
    assert "[['serve'], ['serve', 'tpu']]" in found["graph"]


def test_tpu_operation(artifact):
    def edit(saved_model):
        graph = saved_model.meta_graphs[0].graph_def
        graph.node.add(name="planted", op="TPUReplicateMetadata")

    edit_graph(artifact, edit)
    assert "'planted' (TPUReplicateMetadata)" in failures(artifact)["tpu"]


def test_tpu_operation_in_a_function(artifact):
    def edit(saved_model):
        library = saved_model.meta_graphs[0].graph_def.library
        node = library.function.add().node_def.add(name="planted", op="NoOp")
        node.attr["_tpu_replicate"].s = b"cluster"

    edit_graph(artifact, edit)
    assert "'planted'" in failures(artifact)["tpu"]


# --- numbers ------------------------------------------------------------------------


def test_swapped_weights(artifact, tmp_path):
    """Another model of the same shapes: only its answers give it away."""
    other = tiny_artifact.train(tmp_path / "other", seed=18)
    other_artifact = tiny_artifact.export(other, tmp_path / "other_artifact")
    shutil.rmtree(artifact / "variables")
    shutil.copytree(other_artifact / "variables", artifact / "variables")
    rehash(artifact)
    found = failures(artifact)
    for signature in ("serving_default", "tensors"):
        for loader in ("session", "function"):
            assert "differs by" in found[f"replay:{signature}:{loader}"]
    assert {name.split(":")[0] for name in found} == {
        "replay",
        "batch_sizes",
        "padding",
        "empty_row",
        "malformed",
        "label",
    }


def test_swapped_columns(artifact):
    """The golden requests swapped alike: only the score contradicts."""

    def edit(saved_model):
        graph = saved_model.meta_graphs[0].graph_def
        axis = graph.node.add(name="planted_axis", op="Const")
        axis.attr["dtype"].type = types_pb2.DT_INT32
        axis.attr["value"].tensor.CopyFrom(tf.make_tensor_proto([1], tf.int32))
        for signature in ("serving_default", "tensors"):
            single = types_pb2.DT_FLOAT
            args = (saved_model, signature, "probabilities", "ReverseV2", single)
            replace_output(*args, T=single, Tidx=types_pb2.DT_INT32)
            graph.node[-1].input.append("planted_axis")

    def swap(requests):
        for request in requests:
            request["probabilities"].reverse()

    edit_graph(artifact, edit)
    assert "probabilities differs by" in failures(artifact)["replay:tensors:session"]
    edit_golden(artifact, swap)
    rehash(artifact)
    found = failures(artifact)
    assert set(found) == {"probabilities:serving_default", "probabilities:tensors"}
    assert "not the log odds" in found["probabilities:tensors"]


def test_negated_score(artifact):
    def edit(saved_model):
        single = types_pb2.DT_FLOAT
        replace_output(saved_model, "tensors", "score", "Neg", single, T=single)

    edit_graph(artifact, edit)
    found = failures(artifact)
    assert "score differs by" in found["replay:tensors:session"]
    assert "not the log odds" in found["probabilities:tensors"]
    assert not any("serving_default" in name for name in found)


def test_nan_in_a_variable_that_no_request_reads(artifact):
    def change(values):
        # The examples have 20 tokens at most.
        values["bert/embeddings/position_embeddings"][23, 5] = np.nan

    write_variables(artifact, change)
    found = failures(artifact)
    assert set(found) == {"variables"}
    assert "position_embeddings: 1 of" in found["variables"]


def test_tampered_golden_request(artifact):
    def tamper(requests):
        requests[7]["score"] += 1e-3

    edit_golden(artifact, tamper)
    found = failures(artifact)
    assert "assets.extra/golden_requests.json" in found["files"]
    rehash(artifact)
    found = failures(artifact)
    assert "files" not in found
    assert "row 7" in found["replay:serving_default:session"]


def test_golden_request_without_number(artifact):
    def tamper(requests):
        requests[2]["score"] = float("nan")

    edit_golden(artifact, tamper)
    rehash(artifact)
    assert "row 2" in failures(artifact)["replay:tensors:session"]


def test_no_golden_request(artifact):
    edit_golden(artifact, list.clear)
    rehash(artifact)
    assert failures(artifact)["golden"] == "no golden request"


def test_golden_example_of_other_features(artifact):
    def tamper(requests):
        requests[0]["example"] = base64.b64encode(b"nothing").decode()

    edit_golden(artifact, tamper)
    rehash(artifact)
    assert "golden" in failures(artifact)


def test_corrupt_warmup(artifact):
    path = artifact / smoke_test.WARMUP
    path.write_bytes(path.read_bytes()[:-10])
    rehash(artifact)
    assert set(failures(artifact)) == {"warmup"}


def test_warmup_of_one_signature(artifact):
    path = str(artifact / smoke_test.WARMUP)
    first = next(iter(tf.data.TFRecordDataset(path))).numpy()
    with tf.io.TFRecordWriter(path) as writer:
        writer.write(first)
    rehash(artifact)
    assert "['serving_default'], expected" in failures(artifact)["warmup"]


# --- exports that went wrong --------------------------------------------------------


class LabelRequired(FeatureSpec):
    def serving_parsing_spec(self) -> dict[str, Any]:
        return self.parsing_spec()


class Unchecked(FeatureSpec):
    def check(self, features: Any) -> dict[str, tf.Tensor]:
        return dict(features)


def export_with(spec: FeatureSpec, directory: Path) -> Path:
    """An export through another spec, with the manifest of the right one."""
    trained = tiny_artifact.trained()
    # The golden requests were recorded through the right one, too.
    golden = tiny_artifact.artifact() / smoke_test.GOLDEN
    tiny_artifact.export(dataclasses.replace(trained, spec=spec), directory)
    shutil.copy(golden, directory / smoke_test.GOLDEN)
    tiny_artifact.write_manifest(trained, directory)
    return directory


def test_label_required(tmp_path):
    spec = LabelRequired(**dataclasses.asdict(tiny_artifact.trained().spec))
    found = failures(export_with(spec, tmp_path / "artifact"))
    assert "label_ids" in found["label"]
    assert "replay:serving_default:session" not in found
    assert not any("tensors" in name for name in found)


def test_unchecked_requests(tmp_path):
    spec = Unchecked(**dataclasses.asdict(tiny_artifact.trained().spec))
    found = failures(export_with(spec, tmp_path / "artifact"))
    assert set(found) == {"malformed:serving_default", "malformed:tensors"}
    assert "start_ps behind the row: answered" in found["malformed:tensors"]


def test_other_length_than_promised(tmp_path):
    right = tiny_artifact.trained().spec
    longer = dataclasses.replace(right, max_seq_length=24)
    found = failures(export_with(longer, tmp_path / "longer"))
    assert "too long: answered" in found["malformed:serving_default"]
    shorter = dataclasses.replace(right, max_seq_length=19)
    directory = tmp_path / "shorter"
    found = failures(export_with(shorter, directory))
    assert "expected at most 19 tokens" in found["padding:tensors"]


def model_of(score: Callable[..., tf.Tensor]) -> Callable[..., Any]:
    """A model_fn without training whose score is a function of ids and mask."""

    def model_fn(features, labels, mode):
        table = tf.compat.v1.get_variable("table", [len(tiny_artifact.VOCAB)])
        mask = tf.cast(features["input_mask"], tf.float32)
        values = tf.gather(table, features["input_ids"]) * mask
        step = tf.compat.v1.train.get_or_create_global_step()
        scores = score(values, mask)
        logits = tf.stack([tf.zeros_like(scores), scores], axis=1)
        predictions = {"probabilities": tf.nn.softmax(logits), "score": scores}
        return tf.estimator.EstimatorSpec(
            mode,
            predictions=predictions,
            loss=tf.reduce_sum(scores),
            train_op=step.assign_add(1).op,
            export_outputs={
                "serving_default": tf.estimator.export.PredictOutput(predictions)
            },
        )

    return model_fn


@pytest.mark.parametrize(
    ("score", "culprits"),
    [
        # A mean over padding, too.
        (lambda values, mask: tf.reduce_mean(values, 1), {"padding"}),
        # Relative to the rest of the batch.
        (
            lambda values, mask: tf.reduce_sum(values - tf.reduce_mean(values), 1),
            {"batch_sizes", "padding", "empty_row"},
        ),
        # Division by the number of tokens, which may be none.
        (
            lambda values, mask: tf.reduce_sum(values, 1) / tf.reduce_sum(mask, 1),
            {"empty_row"},
        ),
    ],
    ids=["padding", "batch", "empty"],
)
def test_rows_that_depend_on_their_company(tmp_path, score, culprits):
    trained = tiny_artifact.trained()
    estimator = tf.compat.v1.estimator.Estimator(model_of(score), str(tmp_path / "m"))

    def input_fn():
        serialized = tf.data.Dataset.from_tensor_slices(trained.examples).batch(32)
        return serialized.map(
            lambda batch: trained.spec.parse(batch, trained.spec.parsing_spec())
        )

    estimator.train(input_fn, steps=1)
    model = dataclasses.replace(
        trained, estimator=estimator, checkpoint=estimator.latest_checkpoint()
    )
    found = failures(tiny_artifact.export(model, tmp_path / "artifact"))
    kinds = {name.split(":")[0] for name in found}
    assert culprits <= kinds
    assert not {"graph", "signatures", "signature", "load", "probabilities"} & kinds
