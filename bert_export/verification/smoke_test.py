"""Proves an exported artifact in a process of its own; imports nothing of ours.

    python -I smoke_test.py ARTIFACT_DIR [--output=smoke_test.json]

TensorFlow, numpy and the standard library are all that this script knows, as a
serving host would, and TensorFlow Text where the artifact takes text. What the
artifact promises is read from its manifest.json, what the trained model answered from
its golden requests. Every check has a name and runs even if others failed, unless it
needs what they could not provide.

Exit code 0: all checks passed; 1: some failed; 2: bad usage.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# TensorFlow reads this when it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import saved_model_pb2

FORMAT_VERSION = 1
# Largest difference from the recorded predictions: absolute up to 1, relative above.
TOLERANCE = 1e-5
BATCH_SIZES = (1, 2, 33)
TAG = "serve"
EXAMPLES_SIGNATURE = "serving_default"
TENSORS_SIGNATURE = "tensors"
TEXT_SIGNATURE = "text"
LINK_SIGNATURE = "link"
# What TensorFlow 2 adds to a SavedModel's signatures to find its initializer.
INIT_SIGNATURE = "__saved_model_init_op"
# The format that takes text, too.
SERVING_MODEL = "serving_model"
TEXT_PACKAGE = "tensorflow_text"
MANIFEST = "manifest.json"
# Written after the manifest, hence not in it.
NOT_LISTED = {MANIFEST, "smoke_test.json", "proof.json"}
GOLDEN = "assets.extra/golden_requests.json"
GOLDEN_TEXTS = "assets.extra/golden_texts.json"
# By tokenizer: the file in assets.extra and, of what takes text, in assets.
VOCABULARIES = {"wordpiece": "vocab.txt", "sentencepiece": "spiece.model"}
WARMUP = "assets.extra/tf_serving_warmup_requests"


class Text(NamedTuple):
    """A mention in a text and a candidate, strings in UTF-8."""

    text: bytes
    start: int
    end: int
    candidate: bytes


# A row's features, each a list of integers; scalars are lists of one.
Row = dict[str, list[int]]
# From texts in UTF-8 to the ids of their word pieces.
Tokenize = Callable[[Sequence[bytes]], list[list[int]]]
# A signature's inputs or outputs by name.
Arrays = dict[str, np.ndarray]
Predict = Callable[[Arrays], Arrays]


class Failed(Exception):
    """A check failed; the message says what was found and what was expected."""


class Unknown(Exception):
    """A check needs what an earlier one could not provide."""


class Artifact(dict[str, Any]):
    """What the checks have found out about an artifact so far, by name."""

    def __init__(self, directory: Path):
        super().__init__()
        self.directory = directory

    def __missing__(self, key: str) -> Any:
        raise Unknown(f"needs the {key}, which could not be had")


# --- what is in the directory -------------------------------------------------------


def check_manifest(artifact: Artifact) -> str:
    """The manifest can be read and holds what the other checks need."""
    manifest = json.loads((artifact.directory / MANIFEST).read_text(encoding="utf-8"))
    if manifest["format_version"] != FORMAT_VERSION:
        raise Failed(
            f"format_version {manifest['format_version']!r}, expected {FORMAT_VERSION}"
        )
    for key in ("contract", "max_seq_length", "features", "files"):
        artifact[key] = manifest[key]
    # A SavedModel's manifest may be older than the other formats.
    artifact["format"] = manifest.get("format", "saved_model")
    artifact["compressed"] = manifest.get("precision", "float32") != "float32"
    # By output, from the recorded predictions. The manifest's holds in any runtime.
    artifact["tolerance"] = (
        manifest["tolerance"]
        if artifact["compressed"]
        else {"probabilities": TOLERANCE, "score": TOLERANCE}
    )
    options = manifest["config"].get("features", {})
    artifact["lower case"] = options.get("lower_case", True)
    artifact["tokenizer"] = options.get("tokenizer", "wordpiece")
    return f"{manifest['name']}, {len(manifest['files'])} files"


def check_files(artifact: Artifact) -> str:
    """Every file is there, has its size and sum, and there is no other."""
    listed = artifact["files"]
    found = {
        path.relative_to(artifact.directory).as_posix(): path
        for path in artifact.directory.rglob("*")
        if path.is_file()
    }
    problems = [f"{name} is missing" for name in sorted(set(listed) - set(found))]
    for name in sorted(set(found) - set(listed) - NOT_LISTED):
        problems.append(f"{name} is not in the manifest")
    for name in sorted(set(found) & set(listed)):
        size, expected = found[name].stat().st_size, listed[name]["bytes"]
        if size != expected:
            problems.append(f"{name} has {size} bytes, expected {expected}")
        elif _sha256(found[name]) != listed[name]["sha256"]:
            problems.append(f"{name} was altered: its SHA-256 differs")
    if problems:
        raise Failed("; ".join(problems))
    return f"{sum(entry['bytes'] for entry in listed.values()):,} bytes"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_golden(artifact: Artifact) -> str:
    """The golden requests can be read, as bytes and as rows of features."""
    requests = json.loads((artifact.directory / GOLDEN).read_text())["requests"]
    if not requests:
        raise Failed("no golden request")
    features = artifact["features"]
    names = [*sequence_fields(artifact), *features["span_fields"]]
    examples, rows = [], []
    for request in requests:
        examples.append(base64.b64decode(request["example"]))
        parsed = tf.train.Example.FromString(examples[-1]).features.feature
        rows.append({name: list(parsed[name].int64_list.value) for name in names})
    artifact["golden examples"] = examples
    artifact["golden rows"] = [trim(artifact, row) for row in rows]
    artifact["golden outputs"] = recorded_outputs(requests)
    if not artifact["compressed"]:
        artifact["expected outputs"] = artifact["golden outputs"]
    lengths = [len(row[features["input_ids"]]) for row in artifact["golden rows"]]
    return f"{len(rows)} requests of {min(lengths)} to {max(lengths)} tokens"


def recorded_outputs(requests: Sequence[Mapping[str, Any]]) -> Arrays:
    """What the trained model answered."""
    return {
        "probabilities": np.array([r["probabilities"] for r in requests], np.float32),
        "score": np.array([r["score"] for r in requests], np.float32),
    }


def check_golden_texts(artifact: Artifact) -> str:
    """The golden requests in text can be read."""
    requests = json.loads((artifact.directory / GOLDEN_TEXTS).read_text())["requests"]
    if not requests:
        raise Failed("no golden request in text")
    artifact["golden text examples"] = [
        base64.b64decode(request["example"]) for request in requests
    ]
    artifact["golden text outputs"] = recorded_outputs(requests)
    artifact["golden texts"] = [
        Text(
            request["text"].encode(),
            request["mention_start"],
            request["mention_end"],
            request["candidate"].encode(),
        )
        for request in requests
    ]
    return f"{len(requests)} requests"


def check_vocabulary(artifact: Artifact) -> str:
    """Both copies of the vocabulary are the one that the golden texts were made with.

    The graph holds it in a compiled form, which the replays prove; these are for
    clients that make or read word-piece ids.
    """
    name = VOCABULARIES[artifact["tokenizer"]]
    asset, extra = f"assets/{name}", f"assets.extra/{name}"
    data = (artifact.directory / asset).read_bytes()
    if data != (artifact.directory / extra).read_bytes():
        raise Failed(f"{asset} differs from {extra}")
    size, tokenize = make_tokenizer(artifact, data)
    artifact["tokenize"] = tokenize
    ids, segments = (
        artifact["features"][name] for name in ("input_ids", "segment_ids")
    )
    found = tokenize([text.candidate for text in artifact["golden texts"]])
    for row, example in enumerate(artifact["golden text examples"]):
        feature = tf.train.Example.FromString(example).features.feature
        pairs = zip(feature[ids].int64_list.value, feature[segments].int64_list.value)
        # Without [SEP]. A long candidate is cut at its end.
        recorded = [index for index, segment in pairs if segment][:-1]
        if found[row][: len(recorded)] != recorded:
            raise Failed(
                f"the candidate of golden text {row} was recorded as the word pieces "
                f"{recorded}, but {asset} makes {found[row]} of it"
            )
    return f"{size:,} word pieces"


def make_tokenizer(artifact: Artifact, data: bytes) -> tuple[int, Tokenize]:
    """The tokenizer with a vocabulary that an artifact was made with, and its size."""
    package = importlib.import_module(TEXT_PACKAGE)
    if artifact["tokenizer"] == "wordpiece":
        vocab = data.decode().removesuffix("\n").split("\n")
        wordpiece = package.FastBertTokenizer(
            vocab=vocab,
            token_out_type=tf.int64,
            lower_case_nfd_strip_accents=artifact["lower case"],
        )
        return len(vocab), lambda texts: wordpiece.tokenize(strings(texts)).to_list()

    model = package.SentencepieceTokenizer(data)

    def tokenize(texts: Sequence[bytes]) -> list[list[int]]:
        if artifact["lower case"]:
            # Each character alone, and one for one: that of İ has a dot behind it.
            texts = [
                "".join(character.lower()[0] for character in text.decode()).encode()
                for text in texts
            ]
        return model.tokenize(strings(texts)).to_list()

    return int(model.vocab_size()), tokenize


# --- what the SavedModel says about itself ------------------------------------------


def check_graph(artifact: Artifact) -> str:
    """saved_model.pb holds one graph, for serving."""
    data = (artifact.directory / tf.saved_model.SAVED_MODEL_FILENAME_PB).read_bytes()
    meta_graphs = saved_model_pb2.SavedModel.FromString(data).meta_graphs
    artifact["meta graphs"] = meta_graphs
    tags = [sorted(meta_graph.meta_info_def.tags) for meta_graph in meta_graphs]
    if tags != [[TAG]]:
        raise Failed(f"graphs tagged {tags}, expected {[[TAG]]}")
    artifact["signatures"] = {
        name: definition
        for name, definition in meta_graphs[0].signature_def.items()
        if name != INIT_SIGNATURE
    }
    return f"{len(meta_graphs[0].graph_def.node):,} nodes, tagged {TAG!r}"


def check_tpu(artifact: Artifact) -> str:
    """No operation needs a TPU, in the graph or in a function."""
    count = 0
    for meta_graph in artifact["meta graphs"]:
        graph = meta_graph.graph_def
        functions = (node for f in graph.library.function for node in f.node_def)
        for node in (*graph.node, *functions):
            count += 1
            if (
                "TPU" in node.op
                or "TPU" in node.device
                or any(key.startswith("_tpu") for key in node.attr)
            ):
                raise Failed(f"operation {node.name!r} ({node.op}) is for a TPU")
    return f"none among {count:,} operations"


def check_signature_names(artifact: Artifact) -> str:
    """The signatures are exactly the promised ones."""
    found, expected = set(artifact["signatures"]), set(artifact["contract"])
    problems = [f"signature {name!r} is missing" for name in sorted(expected - found)]
    problems += [f"unexpected signature {name!r}" for name in sorted(found - expected)]
    if problems:
        raise Failed("; ".join(problems))
    return ", ".join(sorted(found))


def check_signature(artifact: Artifact, signature: str) -> str:
    """A signature's inputs and outputs have the promised names, dtypes and shapes."""
    contract = artifact["contract"][signature]
    if signature not in artifact["signatures"]:
        raise Failed("missing")
    definition = artifact["signatures"][signature]
    problems = []
    if definition.method_name != contract["method_name"]:
        problems.append(
            f"method {definition.method_name!r}, expected {contract['method_name']!r}"
        )
    for side in ("inputs", "outputs"):
        found, expected = getattr(definition, side), contract[side]
        for name in sorted(set(expected) - set(found)):
            problems.append(f"{side[:-1]} {name!r} is missing")
        for name in sorted(set(found) - set(expected)):
            problems.append(f"unexpected {side[:-1]} {name!r}")
        for name in sorted(set(found) & set(expected)):
            for what, value in _tensor_info(found[name]).items():
                if value != expected[name][what]:
                    problems.append(
                        f"{side[:-1]} {name!r} has {what} {value}, "
                        f"expected {expected[name][what]}"
                    )
    if problems:
        raise Failed("; ".join(problems))
    return f"{', '.join(contract['inputs'])} -> {', '.join(contract['outputs'])}"


def _tensor_info(info: Any) -> dict[str, Any]:
    shape = info.tensor_shape
    return {
        "dtype": tf.as_dtype(info.dtype).name,
        "shape": None if shape.unknown_rank else [axis.size for axis in shape.dim],
    }


def check_variables(artifact: Artifact) -> str:
    """Every variable can be read and is finite."""
    prefix = artifact.directory / "variables" / "variables"
    reader = tf.train.load_checkpoint(str(prefix))
    parameters = 0
    for name, dtype in sorted(reader.get_variable_to_dtype_map().items()):
        # TensorFlow 2 keeps the graph of objects beside them.
        if dtype == tf.string:
            continue
        value = reader.get_tensor(name)
        parameters += value.size
        if tf.as_dtype(value.dtype).is_floating:
            broken = np.count_nonzero(~np.isfinite(value.astype(np.float32)))
            if broken:
                raise Failed(f"{name}: {broken} of {value.size} numbers are not finite")
    return f"{parameters:,} numbers"


# --- running it ---------------------------------------------------------------------


def check_load(artifact: Artifact) -> str:
    """Both of TensorFlow's loaders load it.

    TF Serving restores the graph into a session and feeds tensors by name; Python
    programs mostly call `tf.saved_model.load`, which cuts functions out of the graph.
    """
    started = time.monotonic()
    path = str(artifact.directory)
    if artifact.get("format") == SERVING_MODEL:
        # Registers the operations that tokenize.
        importlib.import_module(TEXT_PACKAGE)
    session = tf.compat.v1.Session(graph=tf.Graph())
    with session.graph.as_default():
        meta_graph = tf.compat.v1.saved_model.load(session, [TAG], path)
    loaded = tf.saved_model.load(path, tags=[TAG])
    artifact["session"] = {
        name: _session_predict(session, definition)
        for name, definition in meta_graph.signature_def.items()
    }
    # Their names keep the functions' variables alive as long as `loaded` is.
    artifact["loaded model"] = loaded
    artifact["function"] = {
        name: _function_predict(function)
        for name, function in loaded.signatures.items()
    }
    return f"{time.monotonic() - started:.1f} s"


def _session_predict(session: tf.compat.v1.Session, definition: Any) -> Predict:
    outputs = {name: info.name for name, info in definition.outputs.items()}

    def predict(inputs: Arrays) -> Arrays:
        feed = {definition.inputs[name].name: inputs[name] for name in inputs}
        return session.run(outputs, feed)

    return predict


def _function_predict(function: Any) -> Predict:
    def predict(inputs: Arrays) -> Arrays:
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        return {name: value.numpy() for name, value in function(**tensors).items()}

    return predict


def sequence_fields(artifact: Artifact) -> list[str]:
    """The names of the features that have one value a token."""
    names = ("input_ids", "input_mask", "segment_ids")
    return [artifact["features"][name] for name in names]


def trim(artifact: Artifact, row: Row, length: int | None = None) -> Row:
    """A row without padding, or padded with zeros to a length."""
    mask = row[artifact["features"]["input_mask"]]
    if length is None:
        length = max((index + 1 for index, real in enumerate(mask) if real), default=0)
    result = dict(row)
    for name in sequence_fields(artifact):
        result[name] = (row[name] + [0] * length)[:length]
    return result


def serialize(row: Mapping[str, Sequence[int]]) -> bytes:
    """A row as a tf.Example."""
    example = tf.train.Example()
    for name, values in row.items():
        example.features.feature[name].int64_list.value.extend(values)
    return example.SerializeToString(deterministic=True)


def encode(artifact: Artifact, signature: str, rows: Sequence[Row]) -> Arrays:
    """Rows as a signature's inputs; raw tensors are padded to the longest row."""
    if signature == EXAMPLES_SIGNATURE:
        return {"examples": strings([serialize(row) for row in rows])}
    inputs = {}
    sequences = sequence_fields(artifact)
    for name in (*sequences, *artifact["features"]["span_fields"]):
        values = [row[name] for row in rows]
        longest = max(map(len, values), default=0)
        if name in sequences:
            padded = [value + [0] * (longest - len(value)) for value in values]
            inputs[name] = np.array(padded, np.int64).reshape(len(rows), longest)
        else:
            inputs[name] = np.array([value[0] for value in values], np.int64)
    return inputs


def strings(values: Sequence[bytes]) -> np.ndarray:
    """Byte strings as an array [n] that TensorFlow takes for strings."""
    return np.array(values, dtype=object)


def compare(
    artifact: Artifact, outputs: Arrays, picked: Sequence[int], what: str
) -> float:
    """Compares a signature's outputs with what the golden requests must give.

    In float32 that is what was recorded. A compressed artifact is held to its own
    first answers, which the replay has compared with the recorded ones.

    Args:
      artifact: has the expected outputs.
      outputs: what the signature returned.
      picked: which golden request each row is.
      what: names the request in the failure's message.

    Returns:
      The largest difference.

    Raises:
      Failed: an output is missing, has another dtype or shape, or differs.
    """
    expected = {
        name: value[list(picked)]
        for name, value in artifact["expected outputs"].items()
    }
    return differ(outputs, expected, what)


def differ(
    outputs: Arrays,
    expectations: Arrays,
    what: str,
    tolerance: Mapping[str, float] | None = None,
) -> float:
    """The largest difference of outputs from what is expected, both by name.

    Args:
      outputs: what a signature returned.
      expectations: what it should have.
      what: names the request in the failure's message.
      tolerance: allowed by output; an output that it lacks may have any value. Unset,
        TOLERANCE for all.

    Raises:
      Failed: an output is missing, has another dtype or shape, or differs.
    """
    largest = 0.0
    for name, expected in expectations.items():
        if name not in outputs:
            raise Failed(f"{what}: no output {name!r}")
        found = outputs[name]
        if found.dtype != expected.dtype or found.shape != expected.shape:
            raise Failed(
                f"{what}: {name} is {found.dtype} {list(found.shape)}, "
                f"expected {expected.dtype} {list(expected.shape)}"
            )
        # A scalar output is a row, too.
        found, expected = np.atleast_1d(found), np.atleast_1d(expected)
        difference = np.abs(found - expected) / np.maximum(1, np.abs(expected))
        allowed = TOLERANCE if tolerance is None else tolerance.get(name, np.inf)
        # Written so that NaN fails.
        if not np.all(difference <= allowed):
            row = np.unravel_index(np.argmax(difference), difference.shape)[0]
            raise Failed(
                f"{what}: {name} differs by {np.max(difference):.3g} (allowed: "
                f"{allowed:g}): row {row} is {found[row]}, expected {expected[row]}"
            )
        largest = max(largest, float(np.max(difference, initial=0)))
    return largest


def check_replay(artifact: Artifact, signature: str, loader: str) -> str:
    """The golden requests give what the trained model gave."""
    predict, count = artifact[loader][signature], len(artifact["golden rows"])
    if signature == EXAMPLES_SIGNATURE:
        # As recorded, byte for byte.
        inputs = {"examples": strings(artifact["golden examples"])}
    else:
        inputs = encode(artifact, signature, artifact["golden rows"])
    outputs, what = predict(inputs), f"{count} requests"
    tolerance = artifact["tolerance"]
    largest = differ(outputs, artifact["golden outputs"], what, tolerance)
    artifact.setdefault("expected outputs", outputs)
    compare(artifact, outputs, range(count), what)
    return f"largest difference {largest:.2g}"


def check_batch_sizes(artifact: Artifact, signature: str) -> str:
    """Batches of different sizes, each row in different company."""
    predict, rows = artifact["session"][signature], artifact["golden rows"]
    largest = 0.0
    for size in BATCH_SIZES:
        for first in range(0, len(rows), max(size, len(rows) // 4)):
            picked = [(first + step) % len(rows) for step in range(size)]
            inputs = encode(artifact, signature, [rows[index] for index in picked])
            what = f"batch of {size}"
            largest = max(largest, compare(artifact, predict(inputs), picked, what))
    return f"sizes {', '.join(map(str, BATCH_SIZES))}; difference {largest:.2g}"


def check_padding(artifact: Artifact, signature: str) -> str:
    """Padding changes nothing, and rows of a batch may differ in it."""
    predict, rows = artifact["session"][signature], artifact["golden rows"]
    full = artifact["max_seq_length"]
    padded = [trim(artifact, row, full) for row in rows]
    # Shortest and longest rows side by side, every other one padded.
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i][_ids(artifact)]))
    mixed = [by_length[(n // 2) if n % 2 else -1 - n // 2] for n in range(len(rows))]
    largest = 0.0
    for what, picked, batch in (
        ("unpadded", range(len(rows)), rows),
        (f"padded to {full}", range(len(rows)), padded),
        ("mixed", mixed, [(padded if i % 2 else rows)[i] for i in mixed]),
    ):
        outputs = predict(encode(artifact, signature, batch))
        largest = max(largest, compare(artifact, outputs, picked, what))
    return f"unpadded, to {full}, mixed; difference {largest:.2g}"


def _ids(artifact: Artifact) -> str:
    return artifact["features"]["input_ids"]


def check_empty_row(artifact: Artifact, signature: str) -> str:
    """A row of zeros gives finite numbers and leaves the other rows' alone.

    TF Serving fills batches up; such a row must not disturb real ones.
    """
    predict = artifact["session"][signature]
    rows = artifact["golden rows"][:4]
    length = max(len(row[_ids(artifact)]) for row in rows)
    empty = {name: [0] * min(len(values), 1) for name, values in rows[0].items()}
    empty = trim(artifact, empty, length)
    for name, values in predict(encode(artifact, signature, [empty])).items():
        if not np.isfinite(values).all():
            raise Failed(f"of an empty row alone, {name} is not finite")
    for place in (0, len(rows) // 2, len(rows)):
        batch = [*rows[:place], empty, *rows[place:]]
        outputs = predict(encode(artifact, signature, batch))
        for name, values in outputs.items():
            if not np.isfinite(values).all():
                raise Failed(f"with an empty row at {place}, {name} is not finite")
        others = {name: np.delete(value, place, 0) for name, value in outputs.items()}
        what = f"rows beside an empty one at {place}"
        compare(artifact, others, range(len(rows)), what)
    return "alone, and first, middle and last of a batch"


def check_probabilities(artifact: Artifact, signature: str) -> str:
    """Probabilities are some, and the score is their log odds."""
    inputs = encode(artifact, signature, artifact["golden rows"])
    outputs = artifact["session"][signature](inputs)
    probabilities = outputs["probabilities"].astype(np.float64)
    total = np.abs(probabilities.sum(axis=-1) - 1)
    if not np.all(total <= TOLERANCE) or not np.all(probabilities >= 0):
        raise Failed(f"a row of probabilities sums to 1 +- {np.max(total):.3g}")
    # score = log p1 - log p0, compared where float32 does not run out of digits.
    odds = 1 / (1 + np.exp(-outputs["score"].astype(np.float64)))
    difference = np.abs(odds - probabilities[:, 1])
    if not np.all(difference <= TOLERANCE):
        row = int(np.argmax(difference))
        raise Failed(
            f"score {outputs['score'][row]} of row {row} is not the log odds of its "
            f"probabilities {outputs['probabilities'][row]}"
        )
    return f"sums within {np.max(total):.2g}, score within {np.max(difference):.2g}"


def check_label(artifact: Artifact, signature: str) -> str:
    """The label may be left out, and changes nothing."""
    predict, rows = artifact["session"][signature], artifact["golden rows"]
    name = artifact["features"]["label_ids"]
    for what, label in (
        (f"without {name}", {}),
        (f"{name} 0", {name: [0]}),
        (f"{name} 1", {name: [1]}),
    ):
        inputs = encode(artifact, signature, [{**row, **label} for row in rows])
        compare(artifact, predict(inputs), range(len(rows)), what)
    return f"{name} left out, 0 and 1"


def malformed_rows(artifact: Artifact) -> Iterator[tuple[str, Row]]:
    """Rows that no signature may answer."""
    row = artifact["golden rows"][0]
    sequences, spans = sequence_fields(artifact), artifact["features"]["span_fields"]
    length = len(row[_ids(artifact)])
    mask = artifact["features"]["input_mask"]
    too_long = {name: [1] * (artifact["max_seq_length"] + 1) for name in sequences}
    yield "too long", {**row, **too_long}
    yield "token id not in the vocabulary", {**row, _ids(artifact): [1 << 30] * length}
    yield "negative token id", {**row, _ids(artifact): [-1] * length}
    for name in spans:
        yield f"{name} behind the row", {**row, name: [length]}
        yield f"{name} negative", {**row, name: [-1]}
        masked = {**row, name: [length - 1], mask: [1] * (length - 1) + [0]}
        yield f"{name} on padding", masked
    if len(spans) == 2:
        yield "span that ends before it starts", {**row, spans[0]: [2], spans[1]: [1]}


def malformed_requests(
    artifact: Artifact, signature: str
) -> Iterator[tuple[str, Arrays]]:
    """Requests that a signature must refuse, each with a name."""
    good = artifact["golden rows"][1 % len(artifact["golden rows"])]
    row = artifact["golden rows"][0]
    for what, bad in malformed_rows(artifact):
        yield what, encode(artifact, signature, [good, bad])
    sequences, spans = sequence_fields(artifact), artifact["features"]["span_fields"]
    if signature == TENSORS_SIGNATURE:
        for name in sequences:
            inputs = encode(artifact, signature, [good, row])
            inputs[name] = inputs[name][:, :-1]
            yield f"{name} shorter than the others", inputs
        inputs = encode(artifact, signature, [good, row])
        none = {name: inputs[name][:, :0] for name in sequences}
        yield "rows without tokens", {**inputs, **none}
        for name in (*sequences, *spans):
            inputs = encode(artifact, signature, [good, row])
            inputs[name] = inputs[name][:-1]
            yield f"{name} with a row fewer than the others", inputs
        return
    examples = [
        # TensorFlow's message quotes them, and Python can show only UTF-8.
        ("garbage bytes", b"not a tf.Example"),
        ("empty bytes", b""),
    ]
    for name in (*sequences, *spans):
        without = {key: value for key, value in row.items() if key != name}
        examples.append((f"{name} missing", serialize(without)))
        floats = tf.train.Example.FromString(serialize(without))
        floats.features.feature[name].float_list.value.extend(map(float, row[name]))
        examples.append((f"{name} as floats", floats.SerializeToString()))
        examples.append((f"{name} empty", serialize({**row, name: []})))
    for name in sequences:
        shorter = serialize({**row, name: row[name][:-1]})
        examples.append((f"{name} shorter than the others", shorter))
    for name in spans:
        examples.append((f"{name} twice", serialize({**row, name: row[name] * 2})))
    for what, example in examples:
        yield what, {"examples": strings([serialize(good), example])}


def check_malformed(artifact: Artifact, signature: str) -> str:
    """Malformed requests raise InvalidArgument; the next good one still works."""
    row = artifact["golden rows"][:1]
    return refused(
        artifact["session"][signature],
        malformed_requests(artifact, signature),
        lambda outputs, what: compare(artifact, outputs, [0], what),
        encode(artifact, signature, row),
    )


def refused(
    predict: Predict,
    requests: Iterator[tuple[str, Arrays]],
    check: Callable[[Arrays, str], float],
    next_request: Arrays,
) -> str:
    """Makes sure that each of some requests, all with a name, is refused.

    Args:
      predict: a signature.
      requests: what it must refuse with InvalidArgument.
      check: holds the answer to `next_request` against what is expected.
      next_request: sent after each of them.
    """
    problems, count = [], 0
    for what, inputs in requests:
        count += 1
        try:
            predict(inputs)
            problems.append(f"{what}: answered, expected InvalidArgument")
        except tf.errors.InvalidArgumentError:
            pass
        except Exception as error:
            problems.append(
                f"{what}: {type(error).__name__}, expected InvalidArgument "
                f"({cause(error)})"
            )
        check(predict(next_request), f"the request after {what!r}")
    if problems:
        raise Failed("; ".join(problems))
    return f"{count} kinds refused"


# --- text ---------------------------------------------------------------------------


def encode_texts(texts: Sequence[Text]) -> Arrays:
    """Texts as the inputs of TEXT_SIGNATURE."""
    return {
        "text": strings([text.text for text in texts]),
        "mention_start": np.array([text.start for text in texts], np.int64),
        "mention_end": np.array([text.end for text in texts], np.int64),
        "candidate": strings([text.candidate for text in texts]),
    }


def encode_link(text: Text, candidates: Sequence[bytes]) -> Arrays:
    """A mention and candidates as the inputs of LINK_SIGNATURE."""
    return {
        "text": np.array(text.text, dtype=object),
        "mention_start": np.array(text.start, np.int64),
        "mention_end": np.array(text.end, np.int64),
        "candidates": strings(candidates),
    }


def check_replay_texts(artifact: Artifact, loader: str) -> str:
    """Golden texts give what the trained model gave, and what their examples give."""
    texts = artifact["golden texts"]
    what = f"{len(texts)} texts"
    outputs = artifact[loader][TEXT_SIGNATURE](encode_texts(texts))
    recorded, tolerance = artifact["golden text outputs"], artifact["tolerance"]
    largest = differ(outputs, recorded, what, tolerance)
    examples = {"examples": strings(artifact["golden text examples"])}
    prepared = artifact[loader][EXAMPLES_SIGNATURE](examples)
    same = differ(outputs, prepared, f"{what} and their prepared examples")
    artifact.setdefault("expected text outputs", outputs)
    return f"largest difference {largest:.2g}, from prepared examples {same:.2g}"


def check_text_batch_sizes(artifact: Artifact) -> str:
    """Batches of texts of different sizes, none included."""
    predict, texts = artifact["session"][TEXT_SIGNATURE], artifact["golden texts"]
    expected = artifact["expected text outputs"]
    largest = 0.0
    for size in (0, *BATCH_SIZES):
        picked = [(size + step) % len(texts) for step in range(size)]
        outputs = predict(encode_texts([texts[index] for index in picked]))
        rows = {name: value[picked] for name, value in expected.items()}
        largest = max(largest, differ(outputs, rows, f"batch of {size}"))
    return f"sizes 0, {', '.join(map(str, BATCH_SIZES))}; difference {largest:.2g}"


def check_link(artifact: Artifact, loader: str) -> str:
    """Linking agrees with the pairs' own scores, with none, one and many candidates."""
    link, score = (artifact[loader][name] for name in (LINK_SIGNATURE, TEXT_SIGNATURE))
    texts = artifact["golden texts"]
    largest, sizes = 0.0, (0, 1, 2, 9)
    for first, size in enumerate(sizes):
        text = texts[first % len(texts)]
        candidates = [texts[(first + n) % len(texts)].candidate for n in range(size)]
        outputs = link(encode_link(text, candidates))
        pairs = [text._replace(candidate=candidate) for candidate in candidates]
        scored = score(encode_texts(pairs))
        probability = scored["probabilities"][:, 1]
        odds = np.exp(scored["score"] - np.max(scored["score"], initial=-np.inf))
        best = np.max(probability, initial=0)
        expected = {
            "score": scored["score"],
            "link_probability": probability,
            "probabilities": odds / np.sum(odds),
            "nil_probability": np.float32(1 - best),
        }
        what = f"{size} candidates"
        largest = max(largest, differ(outputs, expected, what))
    return f"{', '.join(map(str, sizes))} candidates; difference {largest:.2g}"


def malformed_texts(artifact: Artifact) -> Iterator[tuple[str, Text]]:
    """Mentions and candidates that no signature may answer."""
    good = artifact["golden texts"][0]
    length = len(good.text.decode())
    for what, start, end in (
        ("that starts before the text", -1, good.end),
        ("that ends behind the text", good.start, length + 1),
        ("behind the text", length, length + 1),
        ("that ends where it starts", good.start, good.start),
        ("that ends before it starts", good.end, good.start),
        ("far away", 1 << 33, (1 << 33) + 1),
    ):
        yield f"mention {what}", good._replace(start=start, end=end)
    for what, text in (("white space", b"   "), ("control characters", b"\0\1")):
        # A SentencePiece model may have pieces for them.
        if not artifact["tokenize"]([text])[0]:
            mention = good._replace(text=text, start=0, end=len(text))
            yield f"mention of {what}", mention
    words = artifact["max_seq_length"]
    long = good._replace(text=b"a " * words, start=0, end=2 * words)
    yield "mention of too many word pieces", long
    yield "empty text", good._replace(text=b"", start=0, end=0)
    # A character cut short, and half of a surrogate pair.
    for what, broken in (("cut", b"\xe4\xb8"), ("surrogate", b"\xed\xa0\x80")):
        yield f"text not UTF-8 ({what})", good._replace(text=good.text + broken)
        yield f"candidate not UTF-8 ({what})", good._replace(candidate=b"x" + broken)


def malformed_text_requests(
    artifact: Artifact, signature: str
) -> Iterator[tuple[str, Arrays]]:
    """Requests that a signature for text must refuse, each with a name."""
    good = artifact["golden texts"][0]
    for what, text in malformed_texts(artifact):
        if signature == LINK_SIGNATURE:
            inputs = encode_link(text, [good.candidate, text.candidate])
        else:
            inputs = encode_texts([good, text])
        yield what, inputs
    if signature == LINK_SIGNATURE:
        outside = good._replace(end=len(good.text) + 1)
        yield "mention outside the text, no candidate", encode_link(outside, [])
        return
    inputs = encode_texts([good, good])
    for name in inputs:
        yield f"{name} with a row fewer", {**inputs, name: inputs[name][:1]}


def check_malformed_texts(artifact: Artifact, signature: str) -> str:
    """Malformed texts raise InvalidArgument; the next good request still works."""
    good = artifact["golden texts"][0]
    if signature == LINK_SIGNATURE:
        next_request = encode_link(good, [good.candidate])
    else:
        next_request = encode_texts([good])
    expected = {"score": artifact["expected text outputs"]["score"][:1]}
    return refused(
        artifact["session"][signature],
        malformed_text_requests(artifact, signature),
        lambda outputs, what: differ(outputs, expected, what),
        next_request,
    )


def check_warmup(artifact: Artifact) -> str:
    """The warm-up requests are answered; TF Serving refuses the version otherwise."""
    if WARMUP not in artifact["files"]:
        return "none in the manifest"
    signatures = set()
    for record in tf.data.TFRecordDataset(str(artifact.directory / WARMUP)):
        # PredictionLog.predict_log.request, its model_spec and its map of inputs.
        log = dict(wire_fields(record.numpy()))
        request = list(wire_fields(dict(wire_fields(log[6]))[1]))
        signature = dict(wire_fields(dict(request)[1]))[3].decode()
        entries = [dict(wire_fields(value)) for field, value in request if field == 2]
        inputs = {
            entry[1].decode(): tf.make_ndarray(
                tensor_pb2.TensorProto.FromString(entry[2])
            )
            for entry in entries
        }
        outputs = artifact["session"][signature](inputs)
        if not all(np.isfinite(value).all() for value in outputs.values()):
            raise Failed(f"{signature}: the warm-up request's answer is not finite")
        signatures.add(signature)
    # A server that batches refuses the scalars of LINK_SIGNATURE.
    expected = set(artifact["contract"]) - {LINK_SIGNATURE}
    if signatures != expected:
        raise Failed(
            f"requests for the signatures {sorted(signatures)}, expected some for "
            f"each of {sorted(expected)}"
        )
    return f"requests for {', '.join(sorted(signatures))}"


def wire_fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a serialized protocol buffer, in order.

    Enough of https://protobuf.dev/programming-guides/encoding to read a warm-up
    request without TF Serving's own package.
    """
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(message):
        key = varint()
        if key & 7 != 2:
            raise Failed(f"field {key >> 3} is of wire type {key & 7}, expected 2")
        length = varint()
        yield key >> 3, message[position : position + length]
        position += length


# --- the report ---------------------------------------------------------------------


def cause(error: BaseException) -> str:
    """The line of an exception's message that says why, cut to 300 characters.

    TensorFlow puts a traceback before it and the node's name, as `[[...]]`, after it.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    nodes = [number for number, line in enumerate(lines) if line.startswith("[[")]
    if nodes and nodes[0] > 0:
        return lines[nodes[0] - 1][:300]
    return (lines or [""])[0][:300]


def run_check(
    checks: list[dict[str, str]], name: str, function: Callable[..., str], *args: Any
) -> None:
    """Runs a check and adds its name, result and detail to the list."""
    try:
        result, detail = "passed", function(*args)
    except Unknown as error:
        result, detail = "skipped", str(error)
    except Failed as error:
        result, detail = "failed", str(error)
    except Exception as error:
        result, detail = "failed", f"{type(error).__name__}: {cause(error)}"
    checks.append({"name": name, "result": result, "detail": detail})


def check_artifact(directory: Path) -> list[dict[str, str]]:
    """Runs all checks on an artifact.

    Args:
      directory: the artifact.

    Returns:
      For each check, in order: `name`, `result` (passed, failed or skipped) and
      `detail`.
    """
    artifact = Artifact(directory)
    checks: list[dict[str, str]] = []
    run_check(checks, "manifest", check_manifest, artifact)
    run_check(checks, "files", check_files, artifact)
    run_check(checks, "golden", check_golden, artifact)
    run_check(checks, "graph", check_graph, artifact)
    run_check(checks, "tpu", check_tpu, artifact)
    run_check(checks, "signatures", check_signature_names, artifact)
    signatures = (EXAMPLES_SIGNATURE, TENSORS_SIGNATURE)
    for name in signatures:
        run_check(checks, f"signature:{name}", check_signature, artifact, name)
    run_check(checks, "variables", check_variables, artifact)
    run_check(checks, "load", check_load, artifact)
    for name in signatures:
        for loader in ("session", "function"):
            what = f"replay:{name}:{loader}"
            run_check(checks, what, check_replay, artifact, name, loader)
        run_check(checks, f"batch_sizes:{name}", check_batch_sizes, artifact, name)
        run_check(checks, f"padding:{name}", check_padding, artifact, name)
        run_check(checks, f"empty_row:{name}", check_empty_row, artifact, name)
        run_check(checks, f"probabilities:{name}", check_probabilities, artifact, name)
        run_check(checks, f"malformed:{name}", check_malformed, artifact, name)
    run_check(checks, "label", check_label, artifact, EXAMPLES_SIGNATURE)
    if artifact.get("format") == SERVING_MODEL:
        check_texts(artifact, checks)
    run_check(checks, "warmup", check_warmup, artifact)
    return checks


def check_texts(artifact: Artifact, checks: list[dict[str, str]]) -> None:
    """Runs the checks on what only the artifacts that take text have."""
    run_check(checks, "golden_texts", check_golden_texts, artifact)
    run_check(checks, "vocabulary", check_vocabulary, artifact)
    for name in (TEXT_SIGNATURE, LINK_SIGNATURE):
        run_check(checks, f"signature:{name}", check_signature, artifact, name)
    for loader in ("session", "function"):
        what = f"replay:{TEXT_SIGNATURE}:{loader}"
        run_check(checks, what, check_replay_texts, artifact, loader)
    run_check(checks, f"batch_sizes:{TEXT_SIGNATURE}", check_text_batch_sizes, artifact)
    for loader in ("session", "function"):
        run_check(checks, f"link:{loader}", check_link, artifact, loader)
    for name in (TEXT_SIGNATURE, LINK_SIGNATURE):
        run_check(checks, f"malformed:{name}", check_malformed_texts, artifact, name)


def check_isolation() -> str:
    """This process imported no module of bert_export."""
    ours = sorted(name for name in sys.modules if name.split(".")[0] == "bert_export")
    if ours:
        raise Failed(f"imported {', '.join(ours)}")
    return "no module of bert_export"


def format_table(checks: Sequence[Mapping[str, str]]) -> str:
    """The checks as lines of name, result and detail."""
    width = max(len(check["name"]) for check in checks)
    return "\n".join(
        f"{check['name']:{width}}  {check['result']:7}  {check['detail']}"
        for check in checks
    )


def main() -> int:
    """Tests the artifact that the command line names; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact_dir", type=Path)
    parser.add_argument("--output", type=Path, help="where the result goes, as JSON")
    args = parser.parse_args()
    if not args.artifact_dir.is_dir():
        parser.error(f"{args.artifact_dir}: not a directory")
    tf.get_logger().setLevel(logging.ERROR)
    started = time.monotonic()
    checks = check_artifact(args.artifact_dir)
    run_check(checks, "isolation", check_isolation)
    passed = all(check["result"] == "passed" for check in checks)
    result = {
        "format_version": FORMAT_VERSION,
        "passed": passed,
        "seconds": round(time.monotonic() - started, 3),
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "tensorflow": tf.__version__,
            **(
                {TEXT_PACKAGE: sys.modules[TEXT_PACKAGE].__version__}
                if TEXT_PACKAGE in sys.modules
                else {}
            ),
        },
        "checks": checks,
    }
    print(format_table(checks))
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
