"""Artifacts of the tiny linker in several formats, and held-out requests for it."""

from __future__ import annotations

import dataclasses
import functools
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from bert_export.config import FeaturesConfig, Target
from bert_export.export import frozen_graph, linker_graph, requests, saved_model
from bert_export.features.records import MISSED, RecordSet
from bert_export.features.spec import MENTION_ID
from bert_export.release import manifest
from bert_export.verification import proof
from tests import tiny_artifact

FORMATS = ("saved_model", "frozen_graph", "onnx", "openvino")


@functools.cache
def model() -> linker_graph.TrainedLinker:
    trained = tiny_artifact.trained()
    features = FeaturesConfig(max_seq_length=trained.spec.max_seq_length)
    return linker_graph.TrainedLinker(
        trained.checkpoint, tiny_artifact.BERT, features, tiny_artifact.TOKENIZER
    )


@functools.cache
def records() -> RecordSet:
    """40 mentions of 1 to 6 candidates; the trained model links many of them right."""
    spec = model().spec
    rng = random.Random(5)
    sizes = [rng.randint(1, 6) for _ in range(40)]
    examples = tiny_artifact.make_examples(spec, sum(sizes))
    directory = Path(_temporary().name)
    path = directory / "test-00000-of-00001.tfrecord"
    mention_ids = np.repeat(np.arange(len(sizes)), sizes)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for serialized, mention in zip(examples, mention_ids):
            example = tf.train.Example.FromString(serialized)
            example.features.feature[MENTION_ID].int64_list.value.append(mention)
            writer.write(example.SerializeToString())
    gold = [rng.randrange(MISSED, size) for size in sizes]
    none = {"nil": 0, "missed": 0}
    return RecordSet("test", (path,), np.array(sizes), np.array(gold), none, 0, "x")


@functools.cache
def held_out() -> proof.HeldOut:
    trained = tiny_artifact.trained()
    return proof.record_held_out(
        trained.estimator,
        trained.checkpoint,
        records(),
        trained.spec,
        mentions_per_batch=4,
        max_mentions=30,
        path=Path(_temporary().name) / "held_out.npz",
    )


@functools.cache
def artifact(format_name: str) -> Path:
    """An artifact in float32. Copy it before changing anything."""
    directory = Path(_temporary().name) / format_name
    directory.mkdir()
    if format_name == "saved_model":
        trained = tiny_artifact.trained()
        saved_model.export_saved_model(
            trained.estimator, trained.spec, directory, trained.checkpoint
        )
    elif format_name == "frozen_graph":
        frozen_graph.write(model(), directory, "float32", [])
    elif format_name == "onnx":
        _write_onnx(directory / "model.onnx")
    elif format_name == "openvino":
        import openvino

        converted = openvino.convert_model(str(artifact("onnx") / "model.onnx"))
        openvino.save_model(
            converted, str(directory / "model.xml"), compress_to_fp16=False
        )
    return describe(directory, Target(format_name, "float32"))


def _write_onnx(path: Path) -> None:
    """Straight from tf2onnx: the proof is tested here and not an exporter."""
    import onnx
    import tf2onnx

    names = (*model().input_names, *linker_graph.OUTPUTS)
    converted, _ = tf2onnx.convert.from_graph_def(
        linker_graph.freeze(model(), checked=False),
        input_names=[f"{name}:0" for name in model().input_names],
        output_names=[f"{name}:0" for name in linker_graph.OUTPUTS],
        opset=17,
        tensors_to_rename={f"{name}:0": name for name in names},
    )
    onnx.save(converted, str(path))


def describe(directory: Path, target: Target) -> Path:
    """Adds to a format's own files all that makes an artifact."""
    trained = tiny_artifact.trained()
    saved_model.write_vocab(directory, tiny_artifact.TOKENIZER)
    requests.write_golden(directory, _golden())
    content = manifest.build(
        directory,
        name=tiny_artifact.NAME,
        spec=trained.spec,
        checkpoint_path=trained.checkpoint,
        config={"name": tiny_artifact.NAME},
        metrics={"link_accuracy": 0.5},
        data_fingerprint="0" * 64,
        target=target,
        encoder=dataclasses.asdict(tiny_artifact.BERT),
        notes=["made for a test"],
    )
    manifest.write(directory, content)
    return directory


def copy(format_name: str, directory: Path) -> Path:
    """A copy of an artifact, to be spoilt."""
    return Path(shutil.copytree(artifact(format_name), directory / format_name))


def rehash(directory: Path) -> None:
    """Makes the manifest agree with the files, so that their sums tell nothing."""
    content = manifest.read(directory)
    content["files"] = manifest.list_files(directory)
    manifest.write(directory, content)


@functools.cache
def _golden() -> dict[str, Any]:
    trained = tiny_artifact.trained()
    return requests.record_golden(
        trained.estimator, trained.checkpoint, trained.examples, trained.spec
    )


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    # Kept until the interpreter ends.
    return tempfile.TemporaryDirectory(prefix="tiny_formats_")
