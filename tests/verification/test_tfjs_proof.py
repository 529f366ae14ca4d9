"""The tiny linker in TensorFlow.js' runtimes, and defects that its proof finds."""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflowjs")

from bert_export import javascript
from bert_export.config import Target
from bert_export.errors import StageError
from bert_export.export import tfjs
from bert_export.verification import proof, prove
from tests.verification import tiny_formats

pytestmark = pytest.mark.skipif(
    not (shutil.which("node") and shutil.which("npm")),
    reason="Node.js with npm is missing (apt-get install nodejs npm)",
)
needs_chromium = pytest.mark.skipif(
    not javascript.chromium(), reason="Chromium is missing (apt-get install chromium)"
)
RUNTIMES = [
    *prove.TFJS_RUNTIMES[:3],
    pytest.param("chromium-wasm", marks=[needs_chromium]),
    # Without a graphics card.
    pytest.param("chromium-webgl", marks=[needs_chromium, pytest.mark.slow]),
]


@functools.cache
def temporary() -> tempfile.TemporaryDirectory[str]:
    # Kept until the interpreter ends; a blank in every path.
    return tempfile.TemporaryDirectory(prefix="tiny tfjs ")


@functools.cache
def exported(precision: str) -> Path:
    directory = Path(temporary().name) / precision
    directory.mkdir()
    tfjs.write(tiny_formats.model(), directory, precision, [])
    return tiny_formats.describe(directory, Target("tfjs", precision))


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A copy of the float32 artifact, to be spoilt."""
    return Path(shutil.copytree(exported("float32"), tmp_path / "artifact"))


def run(artifact: Path, runtime: str, *options: str, held_out: bool = True) -> Any:
    """Runs the script as proof.py does; returns its result."""
    chromium = javascript.chromium()
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "result.json"
        process = subprocess.run(
            [
                *(sys.executable, "-I", proof.SCRIPT, artifact),
                *([tiny_formats.held_out().path] if held_out else []),
                *(f"--runtime={runtime}", f"--node={javascript.node()}"),
                f"--packages={javascript.packages()}",
                *([f"--chromium={chromium}"] if chromium else []),
                *(f"--output={output}", "--no_benchmark", *options),
            ],
            capture_output=True,
            text=True,
        )
        assert process.returncode in (0, 1), process.stderr
        return json.loads(output.read_text())


def checks(result: Any) -> dict[str, tuple[str, str]]:
    return {c["name"]: (c["result"], c["detail"]) for c in result["checks"]}


def failures(artifact: Path, *options: str, runtime: str = "node-wasm") -> Any:
    found = checks(run(artifact, runtime, *options, held_out=False))
    return {n: detail for n, (result, detail) in found.items() if result == "failed"}


def edit(artifact: Path, change: Callable[[Any], Any]) -> None:
    """Changes model.json; the manifest agrees with the new file."""
    path = artifact / "model.json"
    model = json.loads(path.read_text())
    change(model)
    path.write_text(json.dumps(model))
    tiny_formats.rehash(artifact)


def shard(artifact: Path) -> Path:
    (path,) = artifact.glob("*.bin")
    return path


# --- good artifacts -----------------------------------------------------------------


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_runtime_passes(runtime):
    # As proof.py does: those that are slow answer what they can in some time.
    slow = runtime in ("node-cpu", "chromium-webgl")
    options = ["--held_out_seconds=2"] if slow else []
    result = run(exported("float32"), runtime, *options)
    found = checks(result)
    assert {result for result, _ in found.values()} == {"passed"}, found
    kind, backend = runtime.split("-")
    assert found["backend"][1].split(",")[0] == backend.replace("tfjs", "tensorflow")
    assert ("SIMD" in found["backend"][1]) == (backend == "wasm")
    assert found["loading"][1].count(" ms") == 2
    assert found["methods"][1] == "executeAsync, execute, predict"
    assert found["isolation"][1].startswith("none; ")
    assert ("chromium" in result["versions"]) == (kind == "chromium")
    assert result["versions"]["tfjs"] == "4.22.0"
    figures = result["figures"]
    assert 0 < figures["max_difference"] < 1e-5
    assert slow or (figures["mentions"], figures["accuracy_drop"]) == (30, 0)


def test_without_chromium_its_runtimes_are_skipped(monkeypatch, tmp_path):
    artifact = Path(shutil.copytree(exported("uint8"), tmp_path / "artifact"))
    monkeypatch.delenv("CHROMIUM_PATH", raising=False)
    monkeypatch.setattr(javascript, "_CHROMIUM_NAMES", ())
    result = proof.check(artifact)
    assert result["passed"]
    found = checks(result)
    assert found["node-cpu: replay"][0] == "passed"
    skipped = {name for name, (result, _) in found.items() if result == "skipped"}
    assert skipped == {"chromium-wasm", "chromium-webgl"}
    assert "install one" in found["chromium-wasm"][1]
    assert list(result["figures"]["runtimes"]) == ["node-tfjs", "node-wasm", "node-cpu"]
    assert json.loads((artifact / "smoke_test.json").read_text()) == result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "benchmark"), [("float16", False), ("uint8", True)]
)
def test_whole_proof_of_compressed_weights(precision, benchmark, monkeypatch, tmp_path):
    # Long enough to see that slow runtimes are measured, too.
    monkeypatch.setattr(proof, "_MAX_LATENCY_SECONDS", 1)
    monkeypatch.setattr(proof, "_HELD_OUT_SECONDS", 3)
    artifact = Path(shutil.copytree(exported(precision), tmp_path / "artifact"))
    result = proof.prove(
        artifact, tiny_formats.held_out().path, 100.0, benchmark=benchmark, seconds=0.1
    )
    assert result == json.loads((artifact / "proof.json").read_text())
    found = checks(result)
    figures = result["figures"]
    # Compressed, but alike everywhere.
    assert figures["max_difference"] > 1e-5
    for runtime, own in figures["runtimes"].items():
        if benchmark:
            assert own["latency"]["mention"]["median_ms"] > 0
            assert own["rss_bytes"] > 2e7
        if runtime != "node-tfjs":
            assert found[f"{runtime}: same"][0] == "passed"
            assert own["same_difference"] < 1e-4
        assert (f"{runtime}: accuracy" in found) == (
            runtime in ("node-tfjs", "node-wasm")
        )
    assert figures.get("latency") == figures["runtimes"]["node-tfjs"].get("latency")
    assert ("latency" in figures) == benchmark


def test_latency_and_memory_are_the_runtimes(tmp_path):
    output = tmp_path / "proof.json"
    process = subprocess.run(
        [
            *(sys.executable, "-I", proof.SCRIPT, exported("float32")),
            *(tiny_formats.held_out().path, "--runtime=node-wasm"),
            *(f"--node={javascript.node()}", f"--packages={javascript.packages()}"),
            *("--seconds=0.1", "--max_seconds=2", f"--output={output}"),
        ],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    figures = json.loads(output.read_text())["figures"]
    assert 2e7 < figures["rss_bytes"] <= figures["peak_bytes"] < 2e9
    for measured in figures["latency"].values():
        assert 0 < measured["median_ms"] <= measured["p95_ms"] < 10_000
        assert measured["runs"] >= 1


# --- defects ------------------------------------------------------------------------


def test_missing_shard(artifact):
    shard(artifact).unlink()
    found = failures(artifact)
    assert "no such file" in found["weights"]
    assert shard_name(artifact) in found["weights"]
    assert "node-wasm: ENOENT" in found["load"]


def shard_name(artifact: Path) -> str:
    model = json.loads((artifact / "model.json").read_text())
    return model["weightsManifest"][0]["paths"][0]


def test_truncated_shard(artifact):
    path = shard(artifact)
    path.write_bytes(path.read_bytes()[:-40])
    tiny_formats.rehash(artifact)
    found = failures(artifact)
    assert "a shard was cut or is of another model" in found["weights"]
    # The runtime itself refuses it, too.
    assert "load" in found


@needs_chromium
def test_truncated_shard_in_a_browser(artifact):
    path = shard(artifact)
    path.write_bytes(path.read_bytes()[:-40])
    found = failures(artifact, runtime="chromium-wasm")
    assert {"files", "weights", "load"} <= set(found)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "not that of a tfjs_graph_model"),
        ('{"format": "layers-model"}', "not that of a tfjs_graph_model"),
    ],
)
def test_model_json_of_something_else(artifact, content, message):
    (artifact / "model.json").write_text(content)
    tiny_formats.rehash(artifact)
    found = failures(artifact)
    assert message in found["weights"]
    assert "load" in found


def test_model_json_that_names_a_missing_file(artifact):
    def rename(model: Any) -> None:
        model["weightsManifest"][0]["paths"] = ["group1-shard1of7.bin"]

    edit(artifact, rename)
    found = failures(artifact)
    assert found["weights"] == ("model.json names group1-shard1of7.bin: no such file")


def test_directory_that_is_no_model(tmp_path):
    with pytest.raises(StageError, match=r"manifest: .*No such file"):
        proof.check(tmp_path)


def test_swapped_weights(artifact):
    """Two weights of one shape, each in the other's place."""

    def swap(model: Any) -> None:
        weights = model["weightsManifest"][0]["weights"]
        kernels = [w for w in weights if w["shape"] == [16, 16]]
        first, second = kernels[0], kernels[1]
        first["name"], second["name"] = second["name"], first["name"]

    edit(artifact, swap)
    assert "differs by" in failures(artifact)["replay"]


def test_shard_of_another_model(artifact):
    path = shard(artifact)
    values = np.frombuffer(path.read_bytes(), np.float32).copy()
    path.write_bytes((values[::-1]).tobytes())
    found = failures(artifact)
    assert "was altered" in found["files"]
    assert "weights" not in found
    tiny_formats.rehash(artifact)
    found = failures(artifact)
    assert "files" not in found
    assert "replay" in found


def test_renamed_output(artifact):
    def rename(model: Any) -> None:
        outputs = model["signature"]["outputs"]
        outputs["link_score"] = outputs.pop("score")

    edit(artifact, rename)
    found = failures(artifact)
    assert "output 'score' is missing" in found["contract"]
    assert "no output 'score'" in found["replay"]


def test_swapped_inputs(artifact):
    """The signature gives an input's name to another one."""

    def swap(model: Any) -> None:
        inputs = model["signature"]["inputs"]
        inputs["start_ps"], inputs["end_ps"] = inputs["end_ps"], inputs["start_ps"]

    edit(artifact, swap)
    assert "differs by" in failures(artifact)["replay"]


def test_promised_dtype(artifact):
    def change(model: Any) -> None:
        model["signature"]["inputs"]["start_ps"]["dtype"] = "DT_FLOAT"

    edit(artifact, change)
    assert "has dtype float32, expected int32" in failures(artifact)["contract"]


def test_another_vocabulary(artifact):
    path = artifact / "assets.extra" / "vocab.txt"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:-2], lines[-1], lines[-2]]))
    assert failures(artifact) == {
        "files": "assets.extra/vocab.txt was altered: its SHA-256 differs"
    }


def test_scale_of_quantized_weights(tmp_path):
    artifact = Path(shutil.copytree(exported("uint8"), tmp_path / "artifact"))

    def change(model: Any) -> None:
        for weight in model["weightsManifest"][0]["weights"]:
            if "scale" in weight.get("quantization", {}):
                weight["quantization"]["scale"] *= -1

    edit(artifact, change)
    assert {"replay"} <= set(failures(artifact))


def test_runtimes_that_differ(tmp_path):
    """Answers of another runtime that are off by more than float32's own noise."""
    answers = tmp_path / "answers.npz"
    result = run(exported("uint8"), "node-wasm", f"--answers={answers}")
    assert result["figures"]["mentions"] == 30
    with np.load(answers) as stored:
        data = dict(stored)
    data["probabilities"] = data["probabilities"] + np.float32(3e-4)
    np.savez(answers, **data)
    options = (f"--same_as={answers}", "--held_out_seconds=0.05")
    found = checks(run(exported("uint8"), "node-wasm", *options))
    assert found["same"][0] == "failed"
    assert "probabilities differ by 0.0003" in found["same"][1]
    assert "accuracy" not in found


# --- the process --------------------------------------------------------------------


def test_packages_that_are_none(tmp_path):
    args = argparse.Namespace(
        artifact_dir=exported("float32"),
        runtime="node-cpu",
        node=javascript.node(),
        packages=tmp_path,
        chromium=None,
    )
    with pytest.raises(prove.Failed, match=r"node-cpu ended .*Cannot find module"):
        prove.load_tfjs(args)


def test_runtime_without_its_options(artifact):
    process = subprocess.run(
        [sys.executable, "-I", proof.SCRIPT, artifact], capture_output=True, text=True
    )
    assert process.returncode == 1
    assert "takes --runtime, --node and --packages" in process.stdout
