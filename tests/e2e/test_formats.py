"""`export` in many formats: what is published, what is not, and what stays."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from bert_export import config_file, pipeline
from bert_export.config import resolve
from bert_export.errors import StageError, UserError
from bert_export.export import frozen_graph
from tests.command_line import SAMPLE, done, run


def config_of(workdir: Path, **export):
    values = config_file.get_config(str(workdir / "config.json")).to_dict()
    values["export"].update(export)
    return resolve(values)


def export(workdir: Path, **options):
    """`bert-export export` within this process."""
    config = config_of(workdir, **options)
    data = pipeline.prepare(config, workdir)
    checkpoint = pipeline.choose_checkpoint(config, workdir)
    return pipeline.export(config, workdir, data, checkpoint)


def report_of(workdir: Path) -> dict:
    directory = json.loads((workdir / "summary.json").read_text("utf-8"))["report"]
    assert {path.name for path in Path(directory).iterdir()} == {
        "report.html",
        "report.json",
        "report.md",
    }
    return json.loads((Path(directory) / "report.json").read_text("utf-8"))


@pytest.mark.slow
def test_every_format_is_published_and_reported(copied):
    shutil.rmtree(copied / "export")
    formats = (
        "serving_model,frozen_graph/float16,onnx,onnx/int8_dynamic,"
        "openvino/int8_calibrated,tflite"
    )
    # The tiny model is not worth a verdict on accuracy: 29 mentions.
    result = done(
        "export",
        SAMPLE,
        f"--workdir={copied}",
        f"--config.export.formats={formats}",
        "--config.export.max_accuracy_drop=10",
    )
    summary = json.loads((copied / "summary.json").read_text("utf-8"))
    version = summary["version"]
    expected = {
        name: str(copied / "export" / name / str(version))
        for name in (
            "serving_model",
            "frozen_graph_float16",
            "onnx",
            "onnx_int8_dynamic",
            "openvino_int8_calibrated",
            "tflite",
        )
    }
    assert summary["artifacts"] == expected
    assert summary["not_published"] == {}
    for name, path in expected.items():
        assert f"published: {path}" in result.stdout
        proof = json.loads((Path(path) / "proof.json").read_text("utf-8"))
        assert proof["passed"]
        rows = {row["name"]: row for row in report_of(copied)["rows"]}
        assert rows[name]["verdict"] == "published"
        assert rows[name]["figures"]["mentions"] == 29
    # Beside them, what serves them.
    deploy = copied / "export" / "deploy" / str(version)
    assert {path.name for path in deploy.iterdir()} >= {"tf_serving", "triton"}
    # The newest SavedModel is found without --artifact.
    linked = done("link", f"--workdir={copied}", "--text=The [[Mercury]] mission.")
    assert "Mercury" in linked.stdout
    refusal = run("link", f"--artifact={expected['tflite']}", "--text=[[Mercury]]")
    assert refusal.returncode == 2
    assert "is in the format tflite; expected a saved_model" in refusal.stderr
    tested = done("smoke_test", f"--artifact={expected['onnx']}")
    assert "replay" in tested.stdout


@pytest.mark.slow
def test_what_is_measured_is_reported_beside_baselines(copied):
    export(copied, formats=("onnx",), benchmark=True)
    report = report_of(copied)
    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows) == ["onnx", "estimator.predict", "padded SavedModel"]
    for row in rows.values():
        figures = row["figures"]
        assert 0 < figures["cold_start_seconds"] < 60
        assert figures["rss_bytes"] > 1e7
        latency = figures["latency"]
        assert set(latency) == {"example", "mention", "batch_32"}
        assert all(found["median_ms"] > 0 for found in latency.values())
    onnx, predict = (
        rows[name]["figures"]["latency"] for name in ("onnx", "estimator.predict")
    )
    # A graph is built and a checkpoint read in every call.
    assert predict["mention"]["median_ms"] > 10 * onnx["mention"]["median_ms"]
    assert rows["onnx"]["speedup"]["estimator.predict"] == pytest.approx(
        predict["mention"]["median_ms"] / onnx["mention"]["median_ms"]
    )
    batching = (copied / "export" / "deploy" / str(report["version"]) / "triton").rglob(
        "config.pbtxt"
    )
    assert "max_batch_size: " in next(batching).read_text("utf-8")


def test_a_failed_proof_is_reported_and_the_others_are_published(copied, monkeypatch):
    # One of the weights is wrong, as after a converter's fault.
    write = frozen_graph.write

    def write_wrong(model, staging, precision, calibration):
        notes = write(model, staging, precision, calibration)
        path = staging / "frozen_graph.pb"
        graph = tf.compat.v1.GraphDef.FromString(path.read_bytes())
        (node,) = (node for node in graph.node if node.name == "linker/kernel")
        kernel = tf.make_ndarray(node.attr["value"].tensor)
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(np.flip(kernel, 0)))
        path.write_bytes(graph.SerializeToString())
        return notes

    monkeypatch.setattr(frozen_graph, "write", write_wrong)
    before = sorted(path.name for path in (copied / "export").iterdir())
    with pytest.raises(StageError) as caught:
        export(copied, formats=("frozen_graph", "saved_model"))
    message = str(caught.value)
    assert "1 of 2 artifacts were not published: frozen_graph: " in message
    assert "replay" in message
    assert str(copied) not in message

    summary = json.loads((copied / "summary.json").read_text("utf-8"))
    assert list(summary["artifacts"]) == ["saved_model"]
    assert (copied / "export" / str(summary["version"]) / "saved_model.pb").is_file()
    assert list(summary["not_published"]) == ["frozen_graph"]
    # No version of it, and nothing half-made; why it failed is kept.
    left = [path.name for path in (copied / "export" / "frozen_graph").iterdir()]
    assert left == ["failed_proof.json"]
    rows = {row["name"]: row for row in report_of(copied)["rows"]}
    assert rows["saved_model"]["verdict"] == "published"
    assert rows["frozen_graph"]["verdict"] == "failed"
    assert "replay" in rows["frozen_graph"]["reason"]
    after = sorted(path.name for path in (copied / "export").iterdir())
    new = {str(summary["version"]), "frozen_graph"}
    assert set(after) == {*before, *new, "reports", "deploy"}


def limit_file_size():
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))


def test_a_full_disk_leaves_nothing_behind(copied, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = os.geteuid() == 0 and (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)],
            capture_output=True,
            check=False,
        ).returncode
        == 0
    )
    try:
        (small / "what was there").write_text("stays")
        result = run(
            "export",
            f"--workdir={copied}",
            f"--export_dir={small}",
            # Without the right to mount, files alone are limited.
            preexec_fn=None if mounted else limit_file_size,
        )
        assert result.returncode == 1
        assert "stage export failed" in result.stderr
        assert "Traceback" not in result.stderr
        left = {path.relative_to(small).as_posix() for path in small.rglob("*")}
        assert left == {"what was there"}
    finally:
        if mounted:
            subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize("damage", ["altered", "truncated", "missing"])
def test_a_damaged_checkpoint_is_named_and_nothing_is_written(copied, damage, capsys):
    config = config_of(copied)
    prefix = pipeline.choose_checkpoint(config, copied)
    shard = Path(f"{prefix}.data-00000-of-00001")
    content = bytearray(shard.read_bytes())
    if damage == "missing":
        shard.unlink()
    elif damage == "truncated":
        shard.write_bytes(content[: len(content) // 2])
    else:
        for position in range(0, len(content), 500):
            content[position] ^= 1
        shard.write_bytes(content)
    before = set((copied / "export").rglob("*"))
    with pytest.raises(UserError, match="best is damaged or missing"):
        pipeline.choose_checkpoint(config, copied)
    if damage != "missing":
        assert f"damaged, passed over: {prefix}:" in capsys.readouterr().err
    assert set((copied / "export").rglob("*")) == before


@pytest.mark.parametrize(
    ("formats", "expected"),
    [
        ("onxx", "config.export.formats: unknown format 'onxx'; did you mean onnx?"),
        ("onnx/int3", "config.export.formats: onnx is written in float32, float16"),
    ],
)
def test_unknown_formats_stop_before_any_work(tmp_path, formats, expected):
    result = run(
        "run",
        SAMPLE,
        f"--workdir={tmp_path / 'work'}",
        f"--config.export.formats={formats}",
    )
    assert result.returncode == 2
    assert expected in result.stderr
    assert not (tmp_path / "work").exists()
