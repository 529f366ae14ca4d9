"""Defects planted in good artifacts, each found by the check that is meant to."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bert_export.release import manifest
from bert_export.verification import proof, prove
from tests.verification import tiny_formats

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")


def run(artifact: Path, *options: str, cwd: Path | None = None) -> Any:
    """Runs the script as a person would."""
    held_out = tiny_formats.held_out().path
    return subprocess.run(
        [sys.executable, "-I", proof.SCRIPT, artifact, held_out, *options],
        capture_output=True,
        text=True,
        cwd=cwd,
    )


def check(artifact: Path, **options: Any) -> dict[str, Any]:
    """Runs the checks in this process, by name: (result, detail).

    It holds other runtimes, so that the check for these is left out.
    """
    defaults = {
        "artifact_dir": artifact,
        "held_out": tiny_formats.held_out().path,
        "max_mentions": None,
        "max_accuracy_drop": 0.5,
        "pad": False,
        "runtime": None,
        "held_out_seconds": None,
        "answers": None,
        "same_as": None,
    }
    result = prove.check_artifact(argparse.Namespace(**{**defaults, **options}))
    return {
        c["name"]: (c["result"], c["detail"])
        for c in result["checks"]
        if c["name"] != "isolation"
    }


def failures(artifact: Path, **options: Any) -> dict[str, str]:
    checks = check(artifact, **options)
    return {n: detail for n, (result, detail) in checks.items() if result == "failed"}


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A copy of the good ONNX artifact, to be spoilt."""
    return tiny_formats.copy("onnx", tmp_path)


def edit(artifact: Path, change: Callable[[Any], None]) -> None:
    """Changes the ONNX graph; the manifest agrees with the new file."""
    path = str(artifact / "model.onnx")
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, path)
    tiny_formats.rehash(artifact)


def edit_manifest(artifact: Path, **values: Any) -> None:
    manifest.write(artifact, {**manifest.read(artifact), **values})


def initializer(graph: Any, shape: list[int]) -> Any:
    """A weight of some shape."""
    return next(t for t in graph.initializer if list(t.dims) == shape)


def change_weights(graph: Any, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Changes all matrices of floats."""
    for tensor in graph.initializer:
        if len(tensor.dims) == 2 and tensor.data_type == onnx.TensorProto.FLOAT:
            value = change(onnx.numpy_helper.to_array(tensor).copy())
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))


def rename(graph: Any, names: dict[str, str]) -> None:
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


# --- good artifacts -----------------------------------------------------------------


@pytest.mark.parametrize("format_name", tiny_formats.FORMATS)
def test_a_good_artifact_passes_in_a_process_of_its_runtime_alone(
    format_name, tmp_path
):
    artifact = tiny_formats.copy(format_name, tmp_path)
    output = tmp_path / "proof.json"
    process = run(artifact, "--no_benchmark", f"--output={output}", cwd=tmp_path)
    assert process.returncode == 0, process.stdout + process.stderr
    result = json.loads(output.read_text())
    assert result["passed"]
    assert {c["result"] for c in result["checks"]} == {"passed"}
    runtime = {"onnx": "onnxruntime", "openvino": "openvino"}.get(
        format_name, "tensorflow"
    )
    assert runtime in result["versions"]
    assert result["checks"][-1] == {
        "name": "isolation",
        "result": "passed",
        "detail": f"{runtime} only",
    }
    figures = result["figures"]
    assert figures["mentions"] == 30
    assert figures["max_difference"] < 1e-5
    assert figures["accuracy_drop"] == 0
    assert figures["top1_changed"] == 0
    assert 0 < figures["link_accuracy"] == figures["reference_link_accuracy"]
    assert figures["bytes"] == sum(
        entry["bytes"] for entry in manifest.read(artifact)["files"].values()
    )
    assert "latency" not in figures


def test_benchmark(artifact, tmp_path):
    output = tmp_path / "proof.json"
    process = run(artifact, "--seconds=0.1", f"--output={output}")
    assert process.returncode == 0, process.stdout + process.stderr
    figures = json.loads(output.read_text())["figures"]
    assert 0.05 < figures["cold_start_seconds"] < 60
    # A Python process with ONNX Runtime, and never the whole machine.
    assert 2e7 < figures["rss_bytes"] <= figures["peak_bytes"] < 2e9
    assert list(figures["latency"]) == ["example", "mention", "batch_32"]
    pairs = tiny_formats.held_out().pairs / 30
    for (kind, measured), expected in zip(
        figures["latency"].items(), (1, pairs, 32), strict=True
    ):
        assert 0 < measured["median_ms"] <= measured["p95_ms"], kind
        assert measured["runs"] >= 20
        assert measured["pairs"] == pytest.approx(expected)
    # It can be proven again: the result is no part of what the manifest lists.
    shutil.copy(output, artifact / "proof.json")
    assert failures(artifact) == {}


def test_fixed_shape(artifact):
    """As a runtime without dynamic shapes has it."""

    def fix(graph: Any) -> None:
        for value in graph.input:
            dims = value.type.tensor_type.shape.dim
            for dim, size in zip(dims, (8, 20)):
                dim.dim_value = size

    edit(artifact, fix)
    contract = manifest.read(artifact)["contract"]
    found = failures(artifact)
    assert "input 'input_ids' has shape [8, 20], expected [-1, -1]" in found["contract"]
    for tensor in contract["tensors"]["inputs"].values():
        tensor["shape"] = [8, 20][: len(tensor["shape"])]
    for tensor in contract["tensors"]["outputs"].values():
        # ONNX Runtime follows the batch size up to here.
        tensor["shape"][0] = 8
    edit_manifest(artifact, contract=contract)
    checks = check(artifact)
    assert {result for result, _ in checks.values()} == {"passed"}, checks
    assert "padded to [8, 20]" in checks["load"][1]


def test_padded_requests(artifact):
    checks = check(artifact, pad=True)
    assert {result for result, _ in checks.values()} == {"passed"}
    assert "padded to [any, 20]" in checks["load"][1]


# --- files --------------------------------------------------------------------------


def test_altered_weights(artifact):
    path = artifact / "model.onnx"
    model = onnx.load(str(path))
    change_weights(model.graph, lambda value: value * np.float32(1.5))
    onnx.save(model, str(path))
    found = failures(artifact)
    assert "model.onnx was altered: its SHA-256 differs" in found["files"]
    # The numbers tell, too, once the sums agree.
    tiny_formats.rehash(artifact)
    found = failures(artifact)
    assert "files" not in found
    assert "probabilities differs by" in found["replay"]


def test_missing_model(artifact):
    (artifact / "model.onnx").unlink()
    checks = check(artifact)
    assert "model.onnx is missing" in checks["files"][1]
    assert checks["load"][0] == "failed"
    assert checks["replay"] == (
        "skipped",
        "needs the model, which could not be had",
    )
    assert checks["golden"][0] == "passed"


def test_unexpected_file(artifact):
    (artifact / "notes.txt").write_text("by hand")
    assert failures(artifact) == {"files": "notes.txt is not in the manifest"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("{", "JSONDecodeError"),
        ('{"format_version": 99}', "format_version 99, expected 1"),
        ('{"format_version": 1, "format": "x"}', "format 'x', expected one of"),
    ],
)
def test_unreadable_manifest(artifact, content, message):
    path = artifact / "manifest.json"
    path.unlink() if content is None else path.write_text(content)
    checks = check(artifact)
    assert checks["manifest"][0] == "failed"
    assert message in checks["manifest"][1]
    assert {result for name, (result, _) in checks.items() if name != "manifest"} == {
        "skipped"
    }


# --- contract -----------------------------------------------------------------------


def test_renamed_input(artifact):
    edit(artifact, lambda graph: rename(graph, {"segment_ids": "token_type_ids"}))
    found = failures(artifact)
    assert "tensors: input 'segment_ids' is missing" in found["contract"]
    assert "unexpected tensors: input 'token_type_ids'" in found["contract"]
    assert "replay" in found


def test_wrong_dtype(artifact):
    """An input that takes int32 answers rightly, but is not as promised."""

    def to_int32(graph: Any) -> None:
        rename(graph, {"input_ids": "ids_64"})
        value = next(v for v in graph.input if v.name == "ids_64")
        value.name = "input_ids"
        value.type.tensor_type.elem_type = onnx.TensorProto.INT32
        graph.node.insert(
            0,
            onnx.helper.make_node(
                "Cast", ["input_ids"], ["ids_64"], to=onnx.TensorProto.INT64
            ),
        )

    edit(artifact, to_int32)
    assert failures(artifact) == {
        "contract": "tensors: input 'input_ids' has dtype int32, expected int64"
    }


def test_wrong_output_dtype(artifact):
    def to_double(graph: Any) -> None:
        rename(graph, {"score": "score_32"})
        value = next(v for v in graph.output if v.name == "score_32")
        value.name = "score"
        value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
        graph.node.append(
            onnx.helper.make_node(
                "Cast", ["score_32"], ["score"], to=onnx.TensorProto.DOUBLE
            )
        )

    edit(artifact, to_double)
    found = failures(artifact)
    assert "output 'score' has dtype float64, expected float32" in found["contract"]
    assert "score is float64 [32], expected float32 [32]" in found["replay"]


# --- numbers ------------------------------------------------------------------------


def swap_columns(graph: Any) -> None:
    """Gives the probability of no link where that of a link is promised."""
    rename(graph, {"probabilities": "right_way"})
    value = next(v for v in graph.output if v.name == "right_way")
    value.name = "probabilities"
    order = onnx.numpy_helper.from_array(np.array([1, 0]), "order")
    graph.initializer.append(order)
    graph.node.append(
        onnx.helper.make_node(
            "Gather", ["right_way", "order"], ["probabilities"], axis=1
        )
    )


def test_swapped_outputs(artifact):
    edit(artifact, swap_columns)
    found = failures(artifact)
    assert "probabilities differs by" in found["replay"]
    assert "is not the log odds of its probabilities" in found["probabilities"]


@pytest.mark.parametrize("precision", ["int8_dynamic", "float16"])
def test_swapped_outputs_of_a_compressed_model(artifact, precision):
    """Wide tolerances do not hide a model that is wired wrongly."""
    edit_manifest(
        artifact, precision=precision, tolerance=manifest.TOLERANCES[precision]
    )
    assert failures(artifact) == {}
    edit(artifact, swap_columns)
    assert "is not the log odds" in failures(artifact)["probabilities"]


def test_swapped_segments(artifact):
    edit(
        artifact,
        lambda graph: rename(graph, {"start_ps": "end_ps", "end_ps": "start_ps"}),
    )
    assert "differs by" in failures(artifact)["replay"]


def test_not_a_number(artifact):
    def spoil(value: np.ndarray) -> np.ndarray:
        value[-1] = np.nan
        return value

    edit(artifact, lambda graph: change_weights(graph, spoil))
    found = failures(artifact)
    assert "nan" in found["replay"]
    assert "not finite" in found["held_out"]


def test_batch_of_more_than_one_is_wrong(artifact):
    """Every row answers what the first one answers."""

    def first_row(graph: Any) -> None:
        for name in ("input_ids", "input_mask", "segment_ids"):
            rename(graph, {name: f"{name}_all"})
            value = next(v for v in graph.input if v.name == f"{name}_all")
            value.name = name
            # x * 0 + x[0:1]
            graph.node.insert(
                0,
                onnx.helper.make_node(
                    "Add", [f"{name}_0", f"{name}_1"], [f"{name}_all"]
                ),
            )
            graph.node.insert(
                0, onnx.helper.make_node("Mul", [name, "zero"], [f"{name}_0"])
            )
            graph.node.insert(
                0,
                onnx.helper.make_node(
                    "Slice", [name, "from_0", "to_1", "axis_0"], [f"{name}_1"]
                ),
            )
        for name, value in (
            ("zero", np.array(0)),
            ("from_0", np.array([0])),
            ("to_1", np.array([1])),
            ("axis_0", np.array([0])),
        ):
            graph.initializer.append(onnx.numpy_helper.from_array(value, name))

    edit(artifact, first_row)
    found = failures(artifact)
    assert {"replay", "batch_sizes", "empty_row", "decisions"} <= set(found)


def test_degraded_model_loses_accuracy(artifact, tmp_path):
    """Noise in the weights that no tolerance catches."""
    with np.load(tiny_formats.held_out().path) as stored:
        data = dict(stored)
    ends = np.cumsum(data["mention_sizes"])
    # As if the trained model were always right.
    gold = [scores.argmax() for scores in np.split(data["score"], ends[:-1])]
    held_out = tmp_path / "held_out.npz"
    np.savez(held_out, **{**data, "gold": np.array(gold)})
    edit_manifest(artifact, precision="int8_dynamic", tolerance={"probabilities": 1.0})
    assert failures(artifact, held_out=held_out) == {}
    rng = np.random.default_rng(0)
    edit(
        artifact,
        lambda graph: change_weights(
            graph,
            lambda value: rng.normal(value, value.std()).astype(np.float32),
        ),
    )
    found = failures(artifact, held_out=held_out)
    assert set(found) == {"accuracy"}
    assert "points lost (may lose 0.5)" in found["accuracy"]
    # What is lost is measured, not merely noticed: a limit above it passes.
    lost = float(found["accuracy"].split(": ")[1].split()[0])
    assert 0.5 < lost < 100
    for limit, failed in ((lost + 0.01, set()), (lost - 0.01, {"accuracy"})):
        options = {"held_out": held_out, "max_accuracy_drop": limit}
        assert set(failures(artifact, **options)) == failed


def test_changed_decision_in_float32(artifact, tmp_path):
    """Accuracy may stay, as two wrong candidates change places; float32 may not."""
    with np.load(tiny_formats.held_out().path) as stored:
        data = dict(stored)
    sizes, gold, score = data["mention_sizes"], data["gold"], data["score"].copy()
    starts = np.cumsum(sizes) - sizes
    # A mention without a gold entity: accuracy does not depend on it.
    mention = next(i for i in range(len(sizes)) if gold[i] == -1 and sizes[i] > 1)
    rows = slice(starts[mention], starts[mention] + sizes[mention])
    score[rows] = score[rows][::-1] if sizes[mention] == 2 else -score[rows]
    held_out = tmp_path / "held_out.npz"
    np.savez(held_out, **{**data, "score": score})
    found = failures(artifact, held_out=held_out)
    assert set(found) == {"decisions"}
    assert found["decisions"].startswith("1 of 30 changed, 1 of them no ties")
    edit_manifest(artifact, precision="int8_dynamic")
    assert failures(artifact, held_out=held_out) == {}


def test_ties_may_change_places(artifact, tmp_path):
    with np.load(tiny_formats.held_out().path) as stored:
        data = dict(stored)
    sizes, score = data["mention_sizes"], data["score"].copy()
    starts = np.cumsum(sizes) - sizes
    mention = next(i for i in range(len(sizes)) if sizes[i] > 1 and data["gold"][i] < 0)
    rows = slice(starts[mention], starts[mention] + sizes[mention])
    top = score[rows].argmax()
    # Another candidate scores higher by a hair.
    other = starts[mention] + (top + 1) % sizes[mention]
    score[other] = score[rows].max() + 1e-5
    held_out = tmp_path / "held_out.npz"
    np.savez(held_out, **{**data, "score": score})
    checks = check(artifact, held_out=held_out)
    assert checks["decisions"] == ("passed", "1 of 30 changed, 0 of them no ties")


# --- the process --------------------------------------------------------------------


def test_foreign_runtime(tmp_path):
    """A TensorFlow artifact in a process that holds another runtime, too."""
    artifact = tiny_formats.artifact("onnx")
    program = (
        "import runpy, sys, types; sys.modules['onnx'] = types.ModuleType('onnx'); "
        f"runpy.run_path({str(proof.SCRIPT)!r}, run_name='__main__')"
    )
    process = subprocess.run(
        [
            *(sys.executable, "-c", program, artifact, tiny_formats.held_out().path),
            *("--part=checks",),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    result = json.loads(process.stdout.split("result: ")[1])
    assert result["checks"][-1] == {
        "name": "isolation",
        "result": "failed",
        "detail": "imported onnx",
    }


def test_runtime_that_dies(artifact, tmp_path, monkeypatch):
    """A crash is reported like any other defect, with the signal's name."""
    script = tmp_path / "prove.py"
    crash = "os.kill(os.getpid(), signal.SIGSEGV)"
    source = proof.SCRIPT.read_text()
    line = "    session = onnxruntime.InferenceSession("
    assert line in source
    script.write_text(source.replace(line, f"    {crash}\n{line}"))
    monkeypatch.setattr(proof, "SCRIPT", script)
    output = tmp_path / "proof.json"
    process = run(artifact, f"--output={output}")
    assert process.returncode == 1
    (check,) = json.loads(output.read_text())["checks"]
    assert check["name"] == "process"
    assert check["detail"].startswith("the process died (SIGSEGV)")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [([], 2), (["missing", "missing.npz"], 2), ([".", "missing.npz"], 2)],
)
def test_bad_usage(tmp_path, arguments, code):
    process = subprocess.run(
        [sys.executable, "-I", proof.SCRIPT, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert process.returncode == code
    assert "Traceback" not in process.stderr


def test_damaged_held_out_file(artifact, tmp_path):
    path = tmp_path / "held_out.npz"
    path.write_bytes(tiny_formats.held_out().path.read_bytes()[:-500])
    found = failures(artifact, held_out=path)
    assert set(found) == {"held_out"}


# --- its own parts ------------------------------------------------------------------


def test_examples_are_parsed_as_tensorflow_does():
    import tensorflow as tf

    example = tf.train.Example()
    values = {"a": [0, 1, 127, 128, 2**40], "b": [-1, -(2**63), 2**63 - 1], "c": []}
    for name, numbers in values.items():
        example.features.feature[name].int64_list.value.extend(numbers)
    example.features.feature["text"].bytes_list.value.append(b"\x08\x01")
    assert prove.parse_example(example.SerializeToString()) == values
    # Not packed, as proto2 writers may do.
    entry = b"\x0a\x01x\x12\x07\x1a\x05\x08\x05\x08\xac\x02"
    features = b"\x0a" + bytes([len(entry)]) + entry
    unpacked = b"\x0a" + bytes([len(features)]) + features
    assert tf.train.Example.FromString(unpacked).features.feature[
        "x"
    ].int64_list.value == [5, 300]
    assert prove.parse_example(unpacked) == {"x": [5, 300]}


def test_link_accuracy_is_that_of_evaluation():
    from bert_export.training.metrics import Ranking, link_metrics

    rng = np.random.default_rng(4)
    sizes = rng.integers(1, 7, 200)
    gold = rng.integers(-2, sizes)
    # Few different scores, so that there are ties.
    scores = rng.integers(0, 5, sizes.sum()).astype(np.float32)
    held_out = prove.HeldOut([], sizes, gold, np.zeros((0, 2)), scores)
    expected = link_metrics(Ranking(scores, scores, sizes, gold), None)
    assert prove.link_accuracy(held_out, scores) == expected["link_accuracy"]


def test_spread_takes_whole_mentions():
    held_out = prove.read_held_out(tiny_formats.held_out().path)
    some = held_out.spread(7)
    assert len(some.sizes) == 7
    assert len(some.rows) == len(some.score) == some.sizes.sum()
    kept = {id(row.tokens.base) for row in some.rows}
    assert kept <= {id(row.tokens.base) for row in held_out.rows}
    assert held_out.spread(1000).sizes.tolist() == held_out.sizes.tolist()


def test_memory_is_this_processes():
    before = prove.memory()["rss_bytes"]
    block = np.ones(40_000_000 // 8)
    assert prove.memory()["rss_bytes"] - before > 30_000_000
    assert block.nbytes == 40_000_000
    assert before < 1024 * os.sysconf("SC_PHYS_PAGES") * 4
