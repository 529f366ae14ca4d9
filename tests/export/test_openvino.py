"""The openvino format against `estimator.predict`, in each precision."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from bert_export.errors import StageError
from bert_export.export import openvino
from tests.export import other_runtimes

pytest.importorskip("openvino")
pytest.importorskip("nncf")

# Largest differences of the probabilities. The tiny model's weights are few and large.
TOLERANCES = {
    "float32": 1e-5,
    "float16": 1e-2,
    "int8_dynamic": 5e-2,
    "int8_calibrated": 0.15,
}


def write(directory: Path, precision: str, calibration=None) -> list[str]:
    if calibration is None:
        calibration = other_runtimes.batches(32, 16)
    return openvino.write(other_runtimes.model(), directory, precision, calibration)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    directories = {}
    for precision in TOLERANCES:
        directories[precision] = tmp_path_factory.mktemp(precision)
        write(directories[precision], precision)
    return directories


@pytest.mark.parametrize("precision", TOLERANCES)
def test_answers_as_the_estimator_without_tensorflow(artifacts, precision):
    difference = other_runtimes.largest_difference(
        other_runtimes.OPENVINO, artifacts[precision]
    )
    assert difference <= TOLERANCES[precision]
    # What is compressed cannot be exact.
    assert (difference > 1e-5) == (precision != "float32")


def test_the_files_and_the_contract(artifacts):
    import openvino as runtime

    for directory in artifacts.values():
        assert {p.name for p in directory.glob("model.*")} == {"model.xml", "model.bin"}
        read = runtime.Core().read_model(directory / "model.xml")
        inputs = {
            port.get_any_name(): (
                port.get_element_type().to_dtype().name,
                len(port.get_partial_shape()),
            )
            for port in read.inputs
        }
        assert inputs == {
            "input_ids": ("int64", 2),
            "input_mask": ("int64", 2),
            "segment_ids": ("int64", 2),
            "start_ps": ("int64", 1),
            "end_ps": ("int64", 1),
        }
        assert all(port.get_partial_shape().is_dynamic for port in read.inputs)
        outputs = {port.get_any_name(): port.get_names() for port in read.outputs}
        assert outputs == {"probabilities": {"probabilities"}, "score": {"score"}}


def test_compressed_weights_are_smaller(artifacts):
    sizes = {
        precision: (directory / "model.bin").stat().st_size
        for precision, directory in artifacts.items()
    }
    assert sizes["float16"] < 0.6 * sizes["float32"]
    assert sizes["int8_dynamic"] < sizes["float16"]
    assert sizes["int8_calibrated"] < sizes["float16"]


@pytest.mark.parametrize("precision", ["int8_dynamic", "int8_calibrated"])
def test_embedding_tables_and_matrices_are_8_bit(artifacts, precision):
    layers = ElementTree.parse(artifacts[precision] / "model.xml").iter("layer")
    matrices = {
        layer.get("name"): layer.find("data").get("element_type")
        for layer in layers
        if layer.get("type") == "Const"
        # Scales are [rows, 1].
        and re.fullmatch(r"\d+, \d\d+", layer.find("data").get("shape"))
        and int(layer.find("data").get("size")) >= 256
    }
    assert len(matrices) >= 14
    assert set(matrices.values()) <= {"i8", "u8"}


def test_calibration_decides_the_ranges(artifacts, tmp_path):
    (other,) = other_runtimes.batches(4)
    other["input_ids"][:] = 7
    write(tmp_path, "int8_calibrated", [other])
    right = other_runtimes.largest_difference(
        other_runtimes.OPENVINO, artifacts["int8_calibrated"]
    )
    assert right < other_runtimes.largest_difference(other_runtimes.OPENVINO, tmp_path)


def test_the_same_input_gives_the_same_bytes_and_notes(artifacts, tmp_path, capfd):
    (note,) = write(tmp_path, "int8_calibrated")
    assert "48 calibration requests" in note
    for name in ("model.xml", "model.bin"):
        first = (artifacts["int8_calibrated"] / name).read_bytes()
        assert (tmp_path / name).read_bytes() == first
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("precision", "calibration", "message"),
    [
        ("int8_calibrated", [], "needs calibration requests"),
        ("bfloat16", None, "no precision bfloat16"),
    ],
)
def test_refuses(tmp_path, precision, calibration, message):
    with pytest.raises(StageError, match=message):
        write(tmp_path, precision, calibration)
    assert not list(tmp_path.iterdir())
