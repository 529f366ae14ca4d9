"""Proves an artifact in its own runtime and measures it; imports nothing of ours.

    python -I prove.py ARTIFACT_DIR [HELD_OUT.npz] [--output=proof.json]

The standard library, numpy and the one runtime that the artifact is for are all that
this script knows, as a consumer's process would. What the artifact promises is read
from its manifest.json, what the trained model answered from its golden requests and
from the held-out requests. Of a huggingface artifact, whose own runtime need not be
there, bert_export is the runtime: it reads the files as it reads any pretrained model.
Every check has a name and runs even if others failed,
unless it needs what they could not provide.

The checks run in a child process, so that a runtime that dies is reported like any
other defect. If all passed, further fresh processes measure: some the time until
their first answer and their memory, one the latencies. Every runtime keeps its own
defaults, threads included; only OpenVINO is told to compute a float32 artifact in
float32, which it does not do by itself on every CPU.

A tfjs artifact runs in JavaScript: --runtime says where, --node, --packages and
--chromium with what. There, latencies are measured inside that process, and memory is
that process's.

Exit code 0: all checks passed; 1: some failed; 2: bad usage.
"""

from __future__ import annotations

import argparse
import atexit
import base64
import dataclasses
import hashlib
import json
import os
import platform
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# TensorFlow reads this when it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
# Written after the manifest, hence not in it.
NOT_LISTED = {MANIFEST, "smoke_test.json", "proof.json"}
GOLDEN = "assets.extra/golden_requests.json"
# The signature that all formats have; the only one of most.
TENSORS = "tensors"
BATCH_SIZES = (1, 2, 6, 32, 33)
# Golden requests and batch sizes for runtimes that are slow.
FEW = 8
FEW_SIZES = (1, 6, 32)
# Pairs of the largest request that is timed, and of the held-out batches.
LARGE_BATCH = 32
# How far a score may be from the log odds of its probabilities, as a probability.
# Half precision needs it; the tolerance of float32 is below.
SCORE_TOLERANCE = 1e-2
COLD_STARTS = 3
# Requests of a kind that are run before any is timed, and timed at least.
WARM_UP = 5
MIN_RUNS = 20
# A slow model ends here, with fewer runs.
MAX_SECONDS = 60.0
# Different requests of a kind that a process of JavaScript is given to be timed.
TIMED_REQUESTS = 100
# How far probabilities of one artifact may be apart in two runtimes.
SAME_TOLERANCE = 1e-4

# Where a tfjs artifact runs; the first is the one that others are compared with.
TFJS_RUNTIMES = (
    "node-tfjs",
    "node-wasm",
    "node-cpu",
    "chromium-wasm",
    "chromium-webgl",
)
TFJS_RUNNER = Path(__file__).with_name("tfjs") / "runner.mjs"
# The longest that it may think about one command.
TFJS_SECONDS = 900.0

# The top-level modules that a process may hold, by format.
RUNTIMES = {
    "saved_model": {"tensorflow"},
    "serving_model": {"tensorflow", "tensorflow_text"},
    "frozen_graph": {"tensorflow"},
    "onnx": {"onnxruntime"},
    "openvino": {"openvino"},
    "tflite": {"ai_edge_litert"},
    # A process of its own.
    "tfjs": set(),
    "hub": {"tensorflow"},  # And tensorflow_hub, which tensorflow_text imports, too.
    "huggingface": {"bert_export", "tensorflow", "tensorflow_text"},
}
# What must not be there beside them: a model may not need what made it.
FOREIGN = {
    "ai_edge_quantizer",
    "bert_export",
    "nncf",
    "onnx",
    "torch",
    *set().union(*RUNTIMES.values()),
}

# Inputs or outputs by name.
Arrays = dict[str, np.ndarray]
# Inputs or outputs by name: dtype and shape, -1 for a dimension that requests choose.
Description = dict[str, dict[str, Any]]


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


@dataclasses.dataclass(frozen=True)
class Row:
    """A pair's features, without padding.

    Attributes:
      tokens: [3, length] int64: input_ids, input_mask and segment_ids.
      spans: [0 or 2] int64: the mention's first and last piece.
    """

    tokens: np.ndarray
    spans: np.ndarray


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model in its runtime.

    Attributes:
      versions: of the runtime's packages.
      signatures: by name, `inputs` and `outputs` as the runtime reports them.
      predict: answers one request of the signature TENSORS.
      tolerates: kinds of malformed requests (`dtype`, `missing`) that the runtime
        cannot refuse, each with a sentence.
      runner: the process that answers, if it is not this one.
    """

    versions: dict[str, str]
    signatures: dict[str, dict[str, Description]]
    predict: Callable[[Arrays], Arrays]
    tolerates: Mapping[str, str] = dataclasses.field(default_factory=dict)
    runner: TfjsRunner | None = None


# --- the runtimes -------------------------------------------------------------------


def load_saved_model(directory: Path, manifest: Mapping[str, Any]) -> Loaded:
    """Loads with `tf.saved_model.load`, as Python programs do."""
    import tensorflow as tf

    versions = {"tensorflow": tf.__version__}
    if manifest["format"] == "serving_model":
        # Registers the operations that its graph has.
        import tensorflow_text

        versions["tensorflow_text"] = tensorflow_text.__version__
    model = tf.saved_model.load(str(directory))
    functions = dict(model.signatures)
    if TENSORS not in functions:
        raise Failed(f"no signature {TENSORS!r} among {sorted(functions)}")
    signatures = {
        name: {
            "inputs": _tensor_specs(function.structured_input_signature[1]),
            "outputs": _tensor_specs(function.structured_outputs),
        }
        for name, function in functions.items()
    }

    def predict(inputs: Arrays, model: Any = model) -> Arrays:
        # The model is held: its functions keep its variables only as weak references.
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        outputs = model.signatures[TENSORS](**tensors)
        return {name: value.numpy() for name, value in outputs.items()}

    return Loaded(versions, signatures, predict)


def _tensor_specs(specs: Mapping[str, Any]) -> Description:
    return {
        name: _describe(spec.dtype.name, spec.shape) for name, spec in specs.items()
    }


def _describe(dtype: str, shape: Any) -> dict[str, Any]:
    """A tensor of TensorFlow's; the shape is None where its rank is not known."""
    if shape.rank is None:
        return {"dtype": dtype, "shape": None}
    return {"dtype": dtype, "shape": [-1 if n is None else n for n in shape]}


def load_huggingface(directory: Path, manifest: Mapping[str, Any]) -> Loaded:
    """Reads config, weights and head with our own importer."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    import tensorflow as tf

    from bert_export.export import huggingface
    from bert_export.features.spec import FeatureSpec

    features: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in manifest["features"].items()
    }
    function = huggingface.reload(directory, FeatureSpec(**features))
    signature = {
        "inputs": _tensor_specs(function.structured_input_signature[1]),
        "outputs": _tensor_specs(function.structured_outputs),
    }

    def predict(inputs: Arrays) -> Arrays:
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        return {name: value.numpy() for name, value in function(**tensors).items()}

    return Loaded({"tensorflow": tf.__version__}, {TENSORS: signature}, predict)


def load_frozen_graph(directory: Path, manifest: Mapping[str, Any]) -> Loaded:
    """Imports the GraphDef into a session."""
    import tensorflow as tf

    graph_def = tf.compat.v1.GraphDef.FromString(
        (directory / "frozen_graph.pb").read_bytes()
    )
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
    operations = graph.get_operations()
    inputs = {o.name: o.outputs[0] for o in operations if o.type == "Placeholder"}
    # A graph does not say which of its nodes are outputs.
    promised = manifest["contract"][TENSORS]["outputs"]
    outputs = {o.name: o.outputs[0] for o in operations if o.name in promised}
    session = tf.compat.v1.Session(graph=graph)

    def predict(arrays: Arrays) -> Arrays:
        feed = {inputs[name]: value for name, value in arrays.items()}
        return session.run(outputs, feed)

    return Loaded(
        {"tensorflow": tf.__version__},
        {TENSORS: {"inputs": _tensor_specs(inputs), "outputs": _tensor_specs(outputs)}},
        predict,
        tolerates={"dtype": "a Python session converts other dtypes by itself"},
    )


def load_onnx(directory: Path, manifest: Mapping[str, Any]) -> Loaded:
    """Opens a session of ONNX Runtime on the CPU."""
    del manifest
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(directory / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    dtypes = {"tensor(float)": "float32", "tensor(double)": "float64"}

    def describe(arguments: Any) -> Description:
        return {
            argument.name: {
                "dtype": dtypes.get(
                    argument.type, argument.type.removeprefix("tensor(").rstrip(")")
                ),
                # A dimension that requests choose has a name or none.
                "shape": [n if isinstance(n, int) else -1 for n in argument.shape],
            }
            for argument in arguments
        }

    names = [argument.name for argument in session.get_outputs()]
    signature = {
        "inputs": describe(session.get_inputs()),
        "outputs": describe(session.get_outputs()),
    }
    return Loaded(
        {"onnxruntime": onnxruntime.__version__},
        {TENSORS: signature},
        lambda inputs: dict(zip(names, session.run(names, inputs))),
    )


def load_openvino(directory: Path, manifest: Mapping[str, Any]) -> Loaded:
    """Compiles the IR for the CPU."""
    # A measurement does not report to anybody.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    core = openvino.Core()
    options = {}
    if manifest["precision"] == "float32":
        # Its default is bfloat16 on CPUs that have it.
        options["INFERENCE_PRECISION_HINT"] = "f32"
    model = core.compile_model(str(directory / "model.xml"), "CPU", options)
    request = model.create_infer_request()

    def describe(ports: Any) -> Description:
        return {
            port.get_any_name(): {
                "dtype": port.get_element_type().to_dtype().name,
                "shape": [
                    -1 if n.is_dynamic else n.get_length()
                    for n in port.get_partial_shape()
                ],
            }
            for port in ports
        }

    names = [port.get_any_name() for port in model.outputs]

    def predict(inputs: Arrays) -> Arrays:
        # Plain arrays would be converted to the input's dtype, whatever theirs is.
        tensors = {name: openvino.Tensor(value) for name, value in inputs.items()}
        request.infer(tensors)
        return {name: request.get_tensor(name).data.copy() for name in names}

    return Loaded(
        {"openvino": openvino.__version__},
        {
            TENSORS: {
                "inputs": describe(model.inputs),
                "outputs": describe(model.outputs),
            }
        },
        predict,
        tolerates={
            "missing": "this runtime answers when an input is missing, with what it "
            "finds in memory: send all of them"
        },
    )


def load_tflite(directory: Path, manifest: Mapping[str, Any]) -> Loaded:
    """Opens LiteRT's interpreter and its signature."""
    del manifest
    from importlib.metadata import version

    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(directory / "model.tflite"))
    keys = list(interpreter.get_signature_list())
    if len(keys) != 1:
        raise Failed(f"signatures {keys}, expected one")
    runner = interpreter.get_signature_runner(keys[0])

    def describe(details: Mapping[str, Any]) -> Description:
        return {
            name: {
                "dtype": np.dtype(detail["dtype"]).name,
                "shape": [int(n) for n in detail["shape_signature"]],
            }
            for name, detail in details.items()
        }

    signature = {
        "inputs": describe(runner.get_input_details()),
        "outputs": describe(runner.get_output_details()),
    }

    def predict(inputs: Arrays, interpreter: Any = interpreter) -> Arrays:
        # The interpreter is held: the runner does not keep it alive.
        return dict(runner(**inputs))

    return Loaded(
        {"ai_edge_litert": version("ai-edge-litert")}, {TENSORS: signature}, predict
    )


class TfjsRunner:
    """A process that runs the model in one of TensorFlow.js' runtimes."""

    def __init__(self, args: argparse.Namespace):
        """Starts it.

        Args:
          args: `artifact_dir`, `runtime`, `node`, `packages` and `chromium`.
        """
        if not (args.runtime and args.node and args.packages):
            raise Failed("a tfjs artifact takes --runtime, --node and --packages")
        self.runtime = args.runtime
        # Where it says what it has to say.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        command = [
            *(args.node, TFJS_RUNNER, f"--runtime={args.runtime}"),
            *(f"--model={args.artifact_dir}", f"--packages={args.packages}"),
            *([f"--chromium={args.chromium}"] if args.chromium else []),
        ]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        atexit.register(self.close)

    def ask(self, command: str, **arguments: Any) -> Any:
        """The answer to one of runner.mjs' commands.

        Raises:
          Failed: it answers with an error, ends, or does not answer.
        """
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            request = json.dumps({"command": command, **arguments})
            process.stdin.write(request.encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise Failed(self._last_words()) from None
        if not select.select([process.stdout], [], [], TFJS_SECONDS)[0]:
            process.kill()
            raise Failed(f"no answer to {command!r} within {TFJS_SECONDS:.0f} s")
        line = process.stdout.readline()
        if not line:
            raise Failed(self._last_words())
        reply = json.loads(line)
        if "error" in reply:
            raise Failed(f"{self.runtime}: {reply['error']}")
        return reply["result"]

    def _last_words(self) -> str:
        code = self.process.wait()
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace").strip().splitlines()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        # The message, and not the stack and the fields that Node.js prints after it.
        message = [word for word in words if "Error: " in word][:1] or words[-3:]
        return f"{self.runtime} ended ({how}): {' | '.join(message)[:600]}"

    def run(self, inputs: Arrays, method: str = "executeAsync") -> tuple[Arrays, int]:
        """Outputs by name, and how many tensors the runtime holds after it."""
        result = self.ask("run", inputs=_to_json(inputs), method=method)
        outputs = {
            name: np.frombuffer(
                base64.b64decode(array["data"]), np.dtype(array["dtype"])
            ).reshape(array["shape"])
            for name, array in result["outputs"].items()
        }
        return outputs, result["tensors"]

    def time(
        self, requests: Sequence[Arrays], seconds: float, max_seconds: float
    ) -> list[float]:
        """Milliseconds of requests in turn, measured in JavaScript."""
        limits = {
            "warmUp": WARM_UP,
            "seconds": seconds,
            "minRuns": MIN_RUNS,
            "maxSeconds": max_seconds,
        }
        return self.ask(
            "time", requests=[_to_json(inputs) for inputs in requests], limits=limits
        )

    def close(self) -> None:
        """Ends it, with what it started."""
        process = self.process
        if process.stdin and process.poll() is None:
            try:
                process.stdin.close()
                process.wait(30)
            except (BrokenPipeError, subprocess.TimeoutExpired):
                process.kill()


def _to_json(arrays: Arrays) -> dict[str, Any]:
    """Arrays as model.mjs has them; JavaScript has no int64."""
    encoded = {}
    for name, value in arrays.items():
        if value.dtype == np.int64:
            value = value.astype(np.int32)
        encoded[name] = {
            "dtype": value.dtype.name,
            "shape": list(value.shape),
            "data": base64.b64encode(value.tobytes()).decode(),
        }
    return encoded


def load_tfjs(args: argparse.Namespace) -> Loaded:
    """Starts a process of JavaScript that loads the GraphModel, in Node from files."""
    runner = TfjsRunner(args)
    runner.ask("load", way="http" if _in_browser(runner) else "file")
    described = runner.ask("describe")
    signature = {side: described[side] for side in ("inputs", "outputs")}
    return Loaded(
        described["versions"],
        {TENSORS: signature},
        lambda inputs: runner.run(inputs)[0],
        runner=runner,
    )


def _in_browser(runner: TfjsRunner) -> bool:
    return runner.runtime.startswith("chromium-")


LOADERS: dict[str, Callable[[Path, Mapping[str, Any]], Loaded]] = {
    "saved_model": load_saved_model,
    "serving_model": load_saved_model,
    "frozen_graph": load_frozen_graph,
    "onnx": load_onnx,
    "openvino": load_openvino,
    "tflite": load_tflite,
    "hub": load_saved_model,
    "huggingface": load_huggingface,
}


def load(args: argparse.Namespace, manifest: Mapping[str, Any]) -> Loaded:
    """Loads an artifact in the runtime of its format."""
    if manifest["format"] == "tfjs":
        return load_tfjs(args)
    return LOADERS[manifest["format"]](args.artifact_dir, manifest)


class Model:
    """A loaded model that takes rows of features."""

    def __init__(self, loaded: Loaded, manifest: Mapping[str, Any], pad: bool):
        """Reads from the runtime what shape requests must have.

        Args:
          loaded: the model.
          manifest: names the features.
          pad: pad every request to max_seq_length.
        """
        features = manifest["features"]
        self.loaded = loaded
        self.sequences = [
            features[n] for n in ("input_ids", "input_mask", "segment_ids")
        ]
        self.spans = list(features["span_fields"])
        inputs = loaded.signatures[TENSORS]["inputs"]
        shape = inputs.get(features["input_ids"], {}).get("shape") or [-1, -1]
        # [batch, length], None where requests choose.
        self.fixed = [n if n > 0 else None for n in shape]
        if pad:
            self.fixed[1] = manifest["max_seq_length"]
        # Some runtimes take only int32.
        self.dtypes = {name: np.dtype(info["dtype"]) for name, info in inputs.items()}

    def encode(self, rows: Sequence[Row], length: int | None = None) -> Arrays:
        """Rows as one request.

        Args:
          rows: the pairs.
          length: pad to it; None to pad to the longest row.

        Returns:
          By name: sequences [batch, length] and spans [batch].
        """
        length = self.fixed[1] or length or max(row.tokens.shape[1] for row in rows)
        batch = self.fixed[0] or len(rows)
        tokens = np.zeros((len(self.sequences), batch, length), np.int64)
        spans = np.zeros((len(self.spans), batch), np.int64)
        for number, row in enumerate(rows):
            tokens[:, number, : row.tokens.shape[1]] = row.tokens
            spans[:, number] = row.spans
        named = {**dict(zip(self.sequences, tokens)), **dict(zip(self.spans, spans))}
        return {
            name: value.astype(self.dtypes.get(name, np.int64), copy=False)
            for name, value in named.items()
        }

    def requests(
        self, rows: Sequence[Row], length: int | None = None
    ) -> list[tuple[Arrays, int]]:
        """Rows as the requests that they take, each with its number of rows.

        It is one, unless the artifact's batch size is fixed.
        """
        step = self.fixed[0] or len(rows)
        parts = [rows[first : first + step] for first in range(0, len(rows), step)]
        return [(self.encode(part, length), len(part)) for part in parts]

    def answer(self, requests: Sequence[tuple[Arrays, int]]) -> Arrays:
        """Outputs for all rows of some requests, by name: [rows, ...]."""
        answers = []
        for inputs, count in requests:
            outputs = self.loaded.predict(inputs)
            answers.append({name: value[:count] for name, value in outputs.items()})
        if len(answers) == 1:
            return answers[0]
        return {
            name: np.concatenate([answer[name] for answer in answers])
            for name in answers[0]
        }

    def __call__(self, rows: Sequence[Row], length: int | None = None) -> Arrays:
        """Outputs for some rows, by name: [rows, ...]."""
        return self.answer(self.requests(rows, length))


# --- what is in the directory -------------------------------------------------------


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest.

    Raises:
      Failed: it is not one of an artifact that this script knows.
    """
    manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    if manifest["format_version"] != FORMAT_VERSION:
        raise Failed(
            f"format_version {manifest['format_version']!r}, expected {FORMAT_VERSION}"
        )
    if manifest["format"] not in RUNTIMES:
        raise Failed(f"format {manifest['format']!r}, expected one of {list(RUNTIMES)}")
    for key in (
        "contract",
        "features",
        "files",
        "max_seq_length",
        "precision",
        "tolerance",
    ):
        if key not in manifest:
            raise Failed(f"no {key!r}")
    return manifest


def check_manifest(artifact: Artifact) -> str:
    """The manifest can be read and holds what the other checks need."""
    artifact["manifest"] = manifest = read_manifest(artifact.directory)
    return f"{manifest['name']}, {manifest['format']} in {manifest['precision']}"


def check_files(artifact: Artifact) -> str:
    """Every file is there, has its size and sum, and there is no other."""
    listed = artifact["manifest"]["files"]
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
    """The golden requests can be read as rows of features."""
    features = artifact["manifest"]["features"]
    requests = json.loads((artifact.directory / GOLDEN).read_text())["requests"]
    if not requests:
        raise Failed("no golden request")
    rows = []
    for request in requests:
        parsed = parse_example(base64.b64decode(request["example"]))
        names = (features[n] for n in ("input_ids", "input_mask", "segment_ids"))
        tokens = np.array([parsed[name] for name in names], np.int64)
        length = int(np.flatnonzero(tokens[1]).max(initial=0)) + 1
        spans = np.array(
            [parsed[name][0] for name in features["span_fields"]], np.int64
        )
        rows.append(Row(tokens[:, :length], spans))
    artifact["golden rows"] = rows
    artifact["golden outputs"] = {
        "probabilities": np.array([r["probabilities"] for r in requests], np.float32),
        "score": np.array([r["score"] for r in requests], np.float32),
    }
    lengths = [row.tokens.shape[1] for row in rows]
    return f"{len(rows)} requests of {min(lengths)} to {max(lengths)} tokens"


def thin_out(artifact: Artifact) -> str:
    """All have been answered; a slow runtime does the rest with some of them."""
    rows = artifact["golden rows"]
    step = max(1, len(rows) // FEW)
    artifact["golden rows"] = rows[::step]
    artifact["golden outputs"] = {
        name: values[::step] for name, values in artifact["golden outputs"].items()
    }
    return f"{len(artifact['golden rows'])} requests for the checks that follow"


def parse_example(example: bytes) -> dict[str, list[int]]:
    """The integer features of a serialized tf.Example, by name.

    The messages are those of tensorflow/core/example/{example,feature}.proto.
    """
    features = {}
    for _, feature_map in wire_fields(example):
        for _, entry in wire_fields(feature_map):
            named = dict(wire_fields(entry))
            for kind, values in wire_fields(named[2]):
                if kind == 3:  # int64_list
                    features[named[1].decode()] = _integers(values)
    return features


def _integers(int64_list: bytes) -> list[int]:
    """The values of an Int64List, packed or not, all of field 1."""
    values: list[int] = []
    for _, value in wire_fields(int64_list):
        if isinstance(value, int):
            values.append(value)
        else:
            position = 0
            while position < len(value):
                number, position = _varint(value, position)
                values.append(number)
    return [value - (1 << 64) if value >> 63 else value for value in values]


def wire_fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a serialized protocol buffer, in order: integers or bytes.

    Enough of https://protobuf.dev/programming-guides/encoding for tf.Examples.
    """
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        value, position = _varint(message, position)
        if key & 7 == 0:
            yield key >> 3, value
        elif key & 7 == 2:
            yield key >> 3, message[position : position + value]
            position += value
        else:
            raise Failed(f"field {key >> 3} is of wire type {key & 7}, expected 0 or 2")


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """The base-128 integer at a position, and the position behind it."""
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Held-out mentions and what the trained model answered.

    Attributes:
      rows: their pairs, one mention's side by side.
      sizes: [mentions] candidates of each mention.
      gold: [mentions] index of its gold candidate; -1: it has no gold entity, -2: this
        is not among the candidates.
      probabilities: [pairs, 2] of the trained model.
      score: [pairs] of the trained model.
    """

    rows: list[Row]
    sizes: np.ndarray
    gold: np.ndarray
    probabilities: np.ndarray
    score: np.ndarray

    @property
    def mentions(self) -> list[list[Row]]:
        """The rows of each mention."""
        ends = np.cumsum(self.sizes)
        return [self.rows[end - size : end] for end, size in zip(ends, self.sizes)]

    def spread(self, count: int) -> HeldOut:
        """At most `count` mentions, evenly spaced."""
        total = len(self.sizes)
        chosen = np.zeros(total, bool)
        chosen[np.arange(min(count, total)) * total // min(count, total)] = True
        pairs = np.repeat(chosen, self.sizes)
        return HeldOut(
            [row for row, keep in zip(self.rows, pairs) if keep],
            self.sizes[chosen],
            self.gold[chosen],
            self.probabilities[pairs],
            self.score[pairs],
        )

    def typical_mention(self) -> list[Row]:
        """The rows of a mention with the median number of candidates."""
        return self.mentions[int(np.argsort(self.sizes)[len(self.sizes) // 2])]


def read_held_out(path: Path) -> HeldOut:
    """Reads held-out requests.

    Args:
      path: .npz of `input_ids`, `input_mask`, `segment_ids` [tokens] and
        `row_splits` [pairs + 1], where each pair's tokens end; `spans` [pairs, 0 or
        2]; `mention_sizes` and `gold` [mentions], -1 for NIL and -2 where the gold
        entity is not among the candidates; `probabilities` [pairs, 2] and `score`
        [pairs] of the trained model.
    """
    with np.load(path, allow_pickle=False) as stored:
        data = dict(stored)
    tokens = np.stack([data[n] for n in ("input_ids", "input_mask", "segment_ids")])
    splits = data["row_splits"].tolist()
    rows = [
        Row(tokens[:, splits[pair] : splits[pair + 1]], data["spans"][pair])
        for pair in range(len(splits) - 1)
    ]
    return HeldOut(
        rows,
        data["mention_sizes"],
        data["gold"],
        data["probabilities"],
        data["score"],
    )


# --- what the model says about itself -----------------------------------------------


def check_load(artifact: Artifact, args: argparse.Namespace) -> str:
    """The format's runtime loads it."""
    manifest = artifact["manifest"]
    started = time.monotonic()
    loaded = load(args, manifest)
    artifact["loaded model"] = loaded
    artifact["model"] = model = Model(loaded, manifest, args.pad)
    seconds = f"{time.monotonic() - started:.1f} s"
    if any(model.fixed):
        shape = ", ".join("any" if n is None else str(n) for n in model.fixed)
        return f"{seconds}, every request padded to [{shape}]"
    return seconds


def check_contract(artifact: Artifact) -> str:
    """Inputs and outputs have the promised names, dtypes and shapes."""
    contract = artifact["manifest"]["contract"]
    signatures = artifact["loaded model"].signatures
    problems = [f"signature {n!r} is missing" for n in contract if n not in signatures]
    problems += [f"unexpected signature {n!r}" for n in signatures if n not in contract]
    for signature in sorted(set(contract) & set(signatures)):
        for side in ("inputs", "outputs"):
            found, expected = signatures[signature][side], contract[signature][side]
            what = f"{signature}: {side[:-1]}"
            for name in sorted(set(expected) - set(found)):
                problems.append(f"{what} {name!r} is missing")
            for name in sorted(set(found) - set(expected)):
                problems.append(f"unexpected {what} {name!r}")
            for name in sorted(set(found) & set(expected)):
                for problem in _differences(found[name], expected[name]):
                    problems.append(f"{what} {name!r} {problem}")
    if problems:
        raise Failed("; ".join(problems))
    inputs = contract[TENSORS]["inputs"]
    return f"{len(contract)} signatures; {TENSORS}: {', '.join(inputs)}"


def _differences(
    found: Mapping[str, Any], expected: Mapping[str, Any]
) -> Iterator[str]:
    """How a tensor differs from its promise.

    A runtime may know less about an output's size than is promised, but not its rank.
    """
    if found["dtype"] != expected["dtype"]:
        yield f"has dtype {found['dtype']}, expected {expected['dtype']}"
    shape, promised = found["shape"], expected["shape"]
    if (
        shape is None
        or len(shape) != len(promised)
        or any(n not in (-1, size) for n, size in zip(shape, promised))
    ):
        yield f"has shape {shape}, expected {promised}"


def check_weights(artifact: Artifact) -> str:
    """model.json is a GraphModel, and its shards are there and hold all weights."""
    path = artifact.directory / "model.json"
    model = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(model, dict) or model.get("format") != "graph-model":
        raise Failed("model.json is not that of a tfjs_graph_model")
    shards = needed = size = 0
    for group in model["weightsManifest"]:
        paths = [artifact.directory / name for name in group["paths"]]
        if missing := [shard.name for shard in paths if not shard.is_file()]:
            raise Failed(f"model.json names {', '.join(missing)}: no such file")
        found = sum(shard.stat().st_size for shard in paths)
        expected = sum(_weight_bytes(weight) for weight in group["weights"])
        if found != expected:
            names = f"{paths[0].name} to {paths[-1].name}" if paths else "no shards"
            raise Failed(
                f"{names} have {found:,} bytes, the weights in model.json take "
                f"{expected:,}: a shard was cut or is of another model"
            )
        shards, needed = shards + len(paths), needed + len(group["weights"])
        size += found
    return f"{needed} weights, {size:,} bytes in {shards} shards"


def _weight_bytes(weight: Mapping[str, Any]) -> int:
    """What a weight of a weights manifest takes in the shards."""
    stored = weight.get("quantization", weight)["dtype"]
    sizes = {"bool": 1, "uint8": 1, "uint16": 2, "float16": 2, "int32": 4, "float32": 4}
    if stored not in sizes:
        raise Failed(f"weight {weight['name']!r} is stored as {stored!r}")
    return int(np.prod(weight["shape"], dtype=np.int64)) * sizes[stored]


def check_backend(artifact: Artifact) -> str:
    """The model runs where it is meant to run, and WASM has what makes it fast."""
    runner = artifact["loaded model"].runner
    described = runner.ask("describe")
    expected = {"tfjs": "tensorflow"}.get(
        runner.runtime.split("-")[1], runner.runtime.split("-")[1]
    )
    if described["backend"] != expected:
        raise Failed(f"backend {described['backend']!r}, expected {expected!r}")
    wasm = described.get("wasm")
    if not wasm:
        return expected
    artifact["figures"]["wasm"] = wasm
    if not wasm["simd"]:
        raise Failed("wasm runs without SIMD, which this Node.js or Chromium lacks")
    if _in_browser(runner) and not (described["isolated"] and wasm["threaded_build"]):
        raise Failed("wasm's threaded build was not loaded: the page is not isolated")
    build = "threaded build" if wasm["threaded_build"] else "build without threads"
    # tfjs-backend-wasm 4.22.0 takes half of the cores that it is told of.
    threads = wasm["threads"]
    return f"wasm, SIMD, {build}, {threads} thread{'s' if threads != 1 else ''}"


def check_loading(artifact: Artifact) -> str:
    """Loaded from files and over HTTP, it answers alike."""
    runner = artifact["loaded model"].runner
    rows = artifact["golden rows"][:4]
    # The way of the first loading last: the other checks go on with it.
    ways = ("file", "http") if _in_browser(runner) else ("http", "file")
    taken = []
    for way in ways:
        milliseconds = runner.ask("load", way=way)["milliseconds"]
        taken.append(f"{way} in {milliseconds:.0f} ms")
        compare(artifact, artifact["model"](rows), range(len(rows)), f"loaded by {way}")
    return ", ".join(taken)


def check_methods(artifact: Artifact) -> str:
    """What execute and predict answer is what executeAsync does, or they say why not.

    None leaves tensors behind.
    """
    model, runner = artifact["model"], artifact["loaded model"].runner
    rows = artifact["golden rows"][:4]
    inputs = model.encode(rows)
    _, held = runner.run(inputs)
    works = []
    for method in ("executeAsync", "execute", "predict"):
        try:
            outputs, tensors = runner.run(inputs, method)
        except Failed as error:
            # A graph whose shapes follow the data has this alone.
            if method != "executeAsync" and "executeAsync" in str(error):
                continue
            raise
        compare(artifact, outputs, range(len(rows)), method)
        if tensors != held:
            raise Failed(f"{method} leaves {tensors - held} tensors behind")
        works.append(method)
    return ", ".join(works)


# --- running it ---------------------------------------------------------------------


def compare(
    artifact: Artifact, outputs: Arrays, picked: Sequence[int], what: str
) -> float:
    """Compares outputs with the trained model's for golden requests.

    Probabilities are compared absolutely; scores, where the manifest has a tolerance
    for them, absolutely up to 1 and relatively above.

    Args:
      artifact: has the golden outputs and the tolerance.
      outputs: what the model returned.
      picked: which golden request each row is.
      what: names the request in the failure's message.

    Returns:
      The largest difference of a probability.

    Raises:
      Failed: an output is missing, has another dtype or shape, is not finite, or
        differs.
    """
    largest = 0.0
    for name, golden in artifact["golden outputs"].items():
        if name not in outputs:
            raise Failed(f"{what}: no output {name!r}")
        found, expected = outputs[name], golden[list(picked)]
        if found.dtype != expected.dtype or found.shape != expected.shape:
            raise Failed(
                f"{what}: {name} is {found.dtype} {list(found.shape)}, "
                f"expected {expected.dtype} {list(expected.shape)}"
            )
        if not np.isfinite(found).all():
            row = np.argwhere(~np.isfinite(found))[0][0]
            raise Failed(f"{what}: {name} of row {row} is {found[row]}")
        tolerance = artifact["manifest"]["tolerance"].get(name)
        if tolerance is None:
            continue
        difference = np.abs(found - expected) / np.maximum(1, np.abs(expected))
        if np.max(difference) > tolerance:
            row = np.unravel_index(np.argmax(difference), difference.shape)[0]
            raise Failed(
                f"{what}: {name} differs by {np.max(difference):.3g} (allowed: "
                f"{tolerance:g}): row {row} is {found[row]}, expected {expected[row]}"
            )
        if name == "probabilities":
            largest = float(np.max(difference))
    return largest


def check_replay(artifact: Artifact) -> str:
    """The golden requests give what the trained model gave."""
    model, rows = artifact["model"], artifact["golden rows"]
    largest = compare(artifact, model(rows), range(len(rows)), f"{len(rows)} requests")
    return f"largest difference {largest:.2g}"


def check_encoder(artifact: Artifact) -> str:
    """As a Keras layer, the encoder gives the states that the head scores alike.

    All of its variables can be trained.
    """
    import tensorflow as tf
    import tensorflow_hub

    layer = tensorflow_hub.KerasLayer(str(artifact.directory), trainable=True)
    # The head stands beside the encoder.
    head = tensorflow_hub.load(str(artifact.directory)).linker
    model, rows = artifact["model"], artifact["golden rows"]
    arrays = model.encode(rows)
    names = ("input_word_ids", "input_mask", "input_type_ids")
    inputs = {
        name: tf.constant(arrays[theirs], tf.int32)
        for name, theirs in zip(names, model.sequences)
    }
    outputs = layer(inputs)
    states = outputs["sequence_output"].numpy()  # [rows, length, hidden]
    for name, found in (
        ("pooled_output", outputs["pooled_output"]),
        ("default", outputs["default"]),
        ("encoder_outputs", outputs["encoder_outputs"][-1][:, 0]),
    ):
        if not np.array_equal(found, states[:, 0]):
            raise Failed(f"{name} is not the last state at [CLS]")
    reads = [np.zeros(len(rows), np.int64), *(arrays[name] for name in model.spans)]
    joined = np.concatenate([states[range(len(rows)), read] for read in reads], axis=1)
    logits = joined @ head.kernel.numpy() + head.bias.numpy()
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    scored = {
        "probabilities": odds / odds.sum(axis=1, keepdims=True),
        "score": logits[:, 1] - logits[:, 0],
    }
    what = "the head on the encoder's states"
    largest = compare(artifact, scored, range(len(rows)), what)
    with tf.GradientTape() as tape:
        trained = layer({name: value[:2] for name, value in inputs.items()}, True)
        loss = tf.reduce_sum(tf.square(trained["sequence_output"]))
    variables = layer.trainable_variables
    for variable, gradient in zip(variables, tape.gradient(loss, variables)):
        if gradient is None:
            raise Failed(f"{variable.name} is trainable, but has no gradient")
    if not variables:
        raise Failed("no variable is trainable")
    return (
        f"tensorflow_hub {tensorflow_hub.__version__}: {len(variables)} trainable "
        f"variables, largest difference {largest:.2g}"
    )


def check_batch_sizes(artifact: Artifact, quick: bool = False) -> str:
    """Batches of different sizes, each row in different company unless it is quick."""
    model, rows = artifact["model"], artifact["golden rows"]
    largest, answered, started = 0.0, 0, time.monotonic()
    sizes = FEW_SIZES if quick else BATCH_SIZES
    for size in sizes:
        for first in range(0, len(rows), max(size, len(rows) // (1 if quick else 4))):
            answered += size
            picked = [(first + step) % len(rows) for step in range(size)]
            outputs = model([rows[index] for index in picked])
            what = f"batch of {size}"
            largest = max(largest, compare(artifact, outputs, picked, what))
    artifact["seconds a row"] = (time.monotonic() - started) / answered
    return f"sizes {', '.join(map(str, sizes))}; difference {largest:.2g}"


def check_padding(artifact: Artifact) -> str:
    """Padding changes nothing, and rows of a batch may differ in it."""
    model, rows = artifact["model"], artifact["golden rows"]
    full = artifact["manifest"]["max_seq_length"]
    # Shortest and longest rows side by side.
    by_length = sorted(range(len(rows)), key=lambda i: rows[i].tokens.shape[1])
    mixed = [by_length[(n // 2) if n % 2 else -1 - n // 2] for n in range(len(rows))]
    largest = 0.0
    for what, picked, length in (
        ("unpadded", [[index] for index in range(len(rows))], None),
        (f"padded to {full}", [range(len(rows))], full),
        ("mixed", [mixed], None),
    ):
        for batch in picked:
            outputs = model([rows[index] for index in batch], length)
            largest = max(largest, compare(artifact, outputs, batch, what))
    fixed = ", its shape being fixed" if model.fixed[1] else ""
    return f"unpadded, to {full}, mixed{fixed}; difference {largest:.2g}"


def check_empty_row(artifact: Artifact) -> str:
    """A row of zeros gives finite numbers and leaves the other rows' alone.

    Servers fill batches up; such a row must not disturb real ones.
    """
    model, rows = artifact["model"], artifact["golden rows"][:4]
    empty = Row(np.zeros((3, 1), np.int64), np.zeros_like(rows[0].spans))
    for place in (None, 0, len(rows) // 2, len(rows)):
        batch = [*rows[:place], empty, *rows[place:]] if place is not None else [empty]
        where = "alone" if place is None else f"at {place}"
        outputs = model(batch)
        for name, values in outputs.items():
            if not np.isfinite(values).all():
                raise Failed(f"with an empty row {where}, {name} is not finite")
        if place is not None:
            others = {name: np.delete(v, place, 0) for name, v in outputs.items()}
            compare(artifact, others, range(len(rows)), f"beside an empty row {where}")
    return "alone, and first, middle and last of a batch"


def check_probabilities(artifact: Artifact) -> str:
    """Probabilities are some, and the score is their log odds."""
    outputs = artifact["model"](artifact["golden rows"])
    tolerance = min(SCORE_TOLERANCE, artifact["manifest"]["tolerance"]["probabilities"])
    probabilities = outputs["probabilities"].astype(np.float64)
    total = np.abs(probabilities.sum(axis=-1) - 1)
    # Written so that NaN fails.
    if not np.all(total <= tolerance) or not np.all(probabilities >= 0):
        raise Failed(f"a row of probabilities sums to 1 +- {np.max(total):.3g}")
    # score = log p1 - log p0, compared where float32 does not run out of digits.
    odds = 1 / (1 + np.exp(-outputs["score"].astype(np.float64)))
    difference = np.abs(odds - probabilities[:, 1])
    if not np.all(difference <= tolerance):
        row = int(np.argmax(difference))
        raise Failed(
            f"score {outputs['score'][row]} of row {row} is not the log odds of its "
            f"probabilities {outputs['probabilities'][row]}"
        )
    return f"sums within {np.max(total):.2g}, score within {np.max(difference):.2g}"


def check_malformed(artifact: Artifact) -> str:
    """Wrong dtypes and missing inputs are refused; the next request still works."""
    model, rows = artifact["model"], artifact["golden rows"][:2]
    tolerates = model.loaded.tolerates
    good = model.encode(rows)
    requests = [("an input too many", {**good, "no_such_input": rows[0].tokens})]
    if "dtype" not in tolerates:
        requests += [
            (f"{name} as float32", {**good, name: value.astype(np.float32)})
            for name, value in good.items()
        ]
    if "missing" not in tolerates:
        requests += [
            (f"without {name}", {key: good[key] for key in good if key != name})
            for name in good
        ]
    problems = []
    for what, inputs in requests:
        try:
            model.loaded.predict(inputs)
            problems.append(f"{what}: answered, expected an error")
        except Exception:
            # Each runtime has exceptions of its own.
            pass
        compare(artifact, model(rows), range(len(rows)), f"the request after {what!r}")
    if problems:
        raise Failed("; ".join(problems))
    return "; ".join([f"{len(requests)} kinds refused", *tolerates.values()])


# --- held-out mentions --------------------------------------------------------------


def check_held_out(
    artifact: Artifact,
    path: Path,
    max_mentions: int | None = None,
    seconds: float | None = None,
) -> str:
    """The held-out requests can be read, and the model answers them.

    In float32 as the trained model does. With `seconds`, it answers about as many of
    them as it can in that time.
    """
    model = artifact["model"]
    held_out = read_held_out(path)
    if seconds is not None:
        mention = artifact["seconds a row"] * held_out.sizes.mean()
        max_mentions = max(1, int(seconds / mention))
    if max_mentions is not None:
        held_out = held_out.spread(max_mentions)
    artifact["held-out requests"] = held_out
    probabilities, scores = [], []
    for batch in _batches(held_out.mentions):
        outputs = model(batch)
        probabilities.append(outputs["probabilities"])
        scores.append(outputs["score"])
    probability, score = np.concatenate(probabilities), np.concatenate(scores)
    broken = np.count_nonzero(
        ~np.isfinite(probability).all(axis=1) | ~np.isfinite(score)
    )
    if broken:
        raise Failed(f"{broken} of {len(score)} answers are not finite")
    artifact["held-out scores"] = score
    artifact["held-out probabilities"] = probability
    difference = np.abs(probability - held_out.probabilities)
    artifact["figures"].update(
        mentions=len(held_out.sizes),
        pairs=len(score),
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
    )
    what = (
        f"{len(held_out.sizes)} mentions, {len(score)} pairs; probabilities differ by "
        f"{difference.max():.2g} at most, {difference.mean():.2g} on average"
    )
    manifest = artifact["manifest"]
    allowed = manifest["tolerance"]["probabilities"]
    if manifest["precision"] == "float32" and not difference.max() <= allowed:
        raise Failed(f"{what} (allowed: {allowed:g})")
    return what


def write_answers(artifact: Artifact, path: Path) -> str:
    """Keeps what the held-out requests got, for `check_same`."""
    np.savez(
        path,
        probabilities=artifact["held-out probabilities"],
        score=artifact["held-out scores"],
    )
    return "written"


def check_same(artifact: Artifact, held_out: Path, answers: Path) -> str:
    """Held-out requests get what another runtime gave for all of them.

    Whatever an artifact's precision, its runtimes compute the same.
    """
    with np.load(answers, allow_pickle=False) as stored:
        full = dataclasses.replace(read_held_out(held_out), **stored)
    found = artifact["held-out probabilities"]
    reference = full.spread(len(artifact["held-out requests"].sizes))
    difference = np.abs(found - reference.probabilities).max()
    # Two candidates this close in score may change places.
    changed = changed_decisions(
        reference, artifact["held-out scores"], 2 * SAME_TOLERANCE
    )
    artifact["figures"]["same_difference"] = float(difference)
    what = (
        f"{len(reference.sizes)} mentions, probabilities differ by {difference:.2g} at "
        f"most (allowed: {SAME_TOLERANCE:g}), {len(changed)} decisions but for ties"
    )
    # Written so that NaN fails.
    if not difference <= SAME_TOLERANCE or changed:
        raise Failed(what)
    return what


def _batches(mentions: Sequence[list[Row]]) -> Iterator[list[Row]]:
    """Whole mentions, together up to LARGE_BATCH pairs, or one that has more."""
    batch: list[Row] = []
    for rows in mentions:
        if batch and len(batch) + len(rows) > LARGE_BATCH:
            yield batch
            batch = []
        batch = batch + rows
    if batch:
        yield batch


def link_accuracy(held_out: HeldOut, scores: np.ndarray) -> float | None:
    """The part of the mentions whose gold candidate scores above all others.

    Mentions whose gold entity is not among the candidates count as wrong; those
    without a gold entity do not count.
    """
    starts = np.cumsum(held_out.sizes) - held_out.sizes
    right = 0
    for start, size, gold in zip(starts, held_out.sizes, held_out.gold):
        if gold >= 0:
            own = scores[start : start + size]
            # A tie with the gold is a miss.
            right += int((own >= own[gold]).sum() == 1)
    total = int((held_out.gold != -1).sum())
    return right / total if total else None


def check_accuracy(artifact: Artifact, max_accuracy_drop: float) -> str:
    """Link accuracy falls by no more points than allowed."""
    held_out = artifact["held-out requests"]
    found = link_accuracy(held_out, artifact["held-out scores"])
    expected = link_accuracy(held_out, held_out.score)
    if found is None or expected is None:
        return "no held-out mention has a gold entity"
    # Without the float's own noise: a drop of exactly the limit passes.
    drop = round(100 * (expected - found), 9)
    artifact["figures"].update(
        link_accuracy=found,
        reference_link_accuracy=expected,
        accuracy_drop=drop,
    )
    what = (
        f"{100 * found:.2f} %, of the trained model {100 * expected:.2f} %: "
        f"{abs(drop):.2f} points {'gained' if drop < 0 else 'lost'} "
        f"(may lose {max_accuracy_drop:g})"
    )
    if drop > max_accuracy_drop:
        raise Failed(what)
    return what


def changed_decisions(
    held_out: HeldOut, scores: np.ndarray, tolerance: float
) -> list[int]:
    """The mentions that are linked otherwise than `held_out` has it.

    Args:
      held_out: the mentions, with the scores to compare with.
      scores: [pairs] what they got.
      tolerance: candidates whose scores are no farther apart may change places; as in
        `compare`, absolute up to 1 and relative above. Negative: none may.
    """
    starts = np.cumsum(held_out.sizes) - held_out.sizes
    changed = []
    for number, (start, size) in enumerate(zip(starts, held_out.sizes)):
        reference = held_out.score[start : start + size]
        top, found = int(reference.argmax()), int(scores[start : start + size].argmax())
        allowed = tolerance * max(1.0, abs(float(reference[top])))
        if top != found and reference[top] - reference[found] > allowed:
            changed.append(number)
    return changed


def check_decisions(artifact: Artifact) -> str:
    """How many mentions are linked otherwise; in float32 none but for ties."""
    held_out, scores = artifact["held-out requests"], artifact["held-out scores"]
    manifest = artifact["manifest"]
    # Two candidates this close in score may change places.
    tolerance = 2 * (manifest["tolerance"].get("score") or 0.0)
    changed = len(changed_decisions(held_out, scores, -1.0))
    beyond = changed_decisions(held_out, scores, tolerance)
    artifact["figures"].update(
        top1_changed=changed, top1_changed_beyond_ties=len(beyond)
    )
    total = len(held_out.sizes)
    what = f"{changed} of {total} changed, {len(beyond)} of them no ties"
    if beyond and manifest["precision"] == "float32":
        raise Failed(
            f"{what}, first that of held-out mention {beyond[0]}; expected none"
        )
    return what


# --- the checks, in a process of their own ------------------------------------------


def check_isolation(artifact: Artifact) -> str:
    """This process holds the format's runtime and nothing of what made the artifact."""
    allowed = RUNTIMES[artifact["manifest"]["format"]]
    found = {name.split(".")[0] for name in sys.modules}
    if strangers := sorted(found & (FOREIGN - allowed)):
        raise Failed(f"imported {', '.join(strangers)}")
    if not allowed:
        return "none; the model runs in a process of its own"
    return f"{', '.join(sorted(found & allowed))} only"


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


def check_artifact(args: argparse.Namespace) -> dict[str, Any]:
    """Runs all checks.

    Returns:
      `checks`: for each, in order, `name`, `result` (passed, failed or skipped) and
      `detail`; `figures`; `versions` of the runtime.
    """
    artifact = Artifact(args.artifact_dir)
    artifact["figures"] = {}
    checks: list[dict[str, str]] = []
    run_check(checks, "manifest", check_manifest, artifact)
    run_check(checks, "files", check_files, artifact)
    run_check(checks, "golden", check_golden, artifact)
    if args.runtime:
        run_check(checks, "weights", check_weights, artifact)
    run_check(checks, "load", check_load, artifact, args)
    if args.runtime:
        run_check(checks, "backend", check_backend, artifact)
    run_check(checks, "contract", check_contract, artifact)
    run_check(checks, "replay", check_replay, artifact)
    if args.runtime:
        run_check(checks, "loading", check_loading, artifact)
        run_check(checks, "methods", check_methods, artifact)
    if artifact.get("manifest", {}).get("format") == "hub":
        run_check(checks, "encoder", check_encoder, artifact)
    quick = args.held_out_seconds is not None
    if quick:
        run_check(checks, "thinning", thin_out, artifact)
    run_check(checks, "batch_sizes", check_batch_sizes, artifact, quick)
    run_check(checks, "padding", check_padding, artifact)
    run_check(checks, "empty_row", check_empty_row, artifact)
    run_check(checks, "probabilities", check_probabilities, artifact)
    run_check(checks, "malformed", check_malformed, artifact)
    if args.held_out:
        held_out, most, seconds = (
            args.held_out,
            args.max_mentions,
            args.held_out_seconds,
        )
        run_check(checks, "held_out", check_held_out, artifact, held_out, most, seconds)
        # One mention more or less of a few is more than may be lost.
        if not quick:
            drop = args.max_accuracy_drop
            run_check(checks, "accuracy", check_accuracy, artifact, drop)
        run_check(checks, "decisions", check_decisions, artifact)
        if args.answers:
            run_check(checks, "answers", write_answers, artifact, args.answers)
        if args.same_as:
            run_check(checks, "same", check_same, artifact, held_out, args.same_as)
    run_check(checks, "isolation", check_isolation, artifact)
    loaded = artifact.get("loaded model")
    return {
        "checks": checks,
        "figures": artifact["figures"],
        "versions": loaded.versions if loaded else {},
    }


# --- measuring, each in a process of its own ----------------------------------------


def memory(process: int | None = None) -> dict[str, int]:
    """Resident memory in bytes, now and at its peak (proc(5)).

    Args:
      process: with all that it has started, where memory that they share counts for
        each of them; None for this process alone.
    """
    fields = {"VmRSS": "rss_bytes", "VmHWM": "peak_bytes"}
    found = dict.fromkeys(fields.values(), 0)
    for number in [os.getpid()] if process is None else family(process):
        try:
            lines = Path(f"/proc/{number}/status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for line in lines:
            key, _, value = line.partition(":")
            if key in fields:
                found[fields[key]] += 1024 * int(value.split()[0])
    return found


def family(process: int) -> list[int]:
    """A process and all that it has started, directly or not."""
    found = [process]
    for number in found:
        for children in Path(f"/proc/{number}/task").glob("*/children"):
            found += map(int, children.read_text().split())
    return found


def open_model(args: argparse.Namespace) -> Model:
    """The artifact's model, loaded."""
    manifest = read_manifest(args.artifact_dir)
    return Model(load(args, manifest), manifest, args.pad)


def answer_first(args: argparse.Namespace) -> dict[str, Any]:
    """Answers one held-out mention; returns the memory that it took."""
    rows = read_held_out(args.held_out).typical_mention()
    model = open_model(args)
    model(rows)
    runner = model.loaded.runner
    return memory(runner.process.pid if runner else None)


def time_latencies(args: argparse.Namespace) -> dict[str, Any]:
    """Times requests of three sizes, real ones in turn.

    Returns:
      By kind (`example`, `mention`, `batch_32`): `median_ms`, `p95_ms`, `runs` and
      the mean `pairs` a request.
    """
    model = open_model(args)
    runner = model.loaded.runner

    def measure(requests: list[list[Row]]) -> dict[str, Any]:
        if runner is None:
            parts = [model.requests(request) for request in requests]
            return time_requests(parts, model.answer, args.seconds)
        chosen = shuffled(len(requests))[:TIMED_REQUESTS]
        arrays = [model.encode(requests[index]) for index in chosen]
        return summarize(runner.time(arrays, args.seconds, args.max_seconds))

    return {
        name: {
            **measure(requests),
            "pairs": float(np.mean([len(request) for request in requests])),
        }
        for name, requests in request_kinds(read_held_out(args.held_out)).items()
    }


def request_kinds(held_out: HeldOut) -> dict[str, list[list[Row]]]:
    """The requests that are timed, by kind: each the rows of one request."""
    rows = held_out.rows
    return {
        "example": [[row] for row in rows],
        "mention": held_out.mentions,
        f"batch_{LARGE_BATCH}": [
            [rows[(first + step) % len(rows)] for step in range(LARGE_BATCH)]
            for first in range(0, len(rows), LARGE_BATCH)
        ],
    }


def time_requests(
    requests: Sequence[Any],
    answer: Callable[[Any], Any],
    seconds: float,
    warm_up: int = WARM_UP,
    min_runs: int = MIN_RUNS,
) -> dict[str, Any]:
    """Answers requests in turn until time is up.

    Args:
      requests: to choose from at random.
      answer: what is timed.
      seconds: how long at least; it ends later where `min_runs` take longer.
      warm_up: answered before any is timed.
      min_runs: timed at least, unless they take MAX_SECONDS.

    Returns:
      `median_ms`, `p95_ms` and `runs`.
    """
    order = shuffled(len(requests))
    for index in order[:warm_up]:
        answer(requests[index])
    taken: list[float] = []
    started = time.perf_counter()
    while True:
        before = time.perf_counter()
        answer(requests[order[len(taken) % len(order)]])
        after = time.perf_counter()
        taken.append(1000 * (after - before))
        elapsed = after - started
        if elapsed > MAX_SECONDS or (elapsed > seconds and len(taken) >= min_runs):
            break
    return summarize(taken)


def shuffled(count: int) -> list[int]:
    """Indices in an order of chance that is always the same: neighbours are alike."""
    return np.random.default_rng(0).permutation(count).tolist()


def summarize(milliseconds: Sequence[float]) -> dict[str, Any]:
    """Median, 95th percentile and number of measurements."""
    return {
        "median_ms": float(np.median(milliseconds)),
        "p95_ms": float(np.percentile(milliseconds, 95)),
        "runs": len(milliseconds),
    }


# --- the report ---------------------------------------------------------------------

PARTS = {
    "checks": check_artifact,
    "first_answer": answer_first,
    "latency": time_latencies,
}


# Before a result on the standard output.
MARK = b"result: "


class Died(Exception):
    """A process ended without a result; the message says how."""


def run_process(command: Sequence[str]) -> tuple[dict[str, Any], float]:
    """Runs a fresh process that prints its result, as `print_result` does.

    Args:
      command: its command line.

    Returns:
      Its result, and the seconds from its start until the result was there.

    Raises:
      Died: it ended without one, or badly after it.
    """
    with tempfile.TemporaryFile() as errors:
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        with process:
            assert process.stdout is not None
            result = seconds = None
            for line in process.stdout:
                if line.startswith(MARK):
                    seconds = time.monotonic() - started
                    result = json.loads(line.removeprefix(MARK))
        code = process.returncode
        if result is None or seconds is None or code:
            errors.seek(0)
            words = errors.read().decode(errors="replace").strip().splitlines()
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise Died(f"the process died ({how}): {' | '.join(words[-3:])[-600:]}")
    return result, seconds


def print_result(result: Mapping[str, Any]) -> None:
    """Hands a result to the parent; runtimes write to the standard output, too."""
    print(f"\n{MARK.decode()}{json.dumps(result)}", flush=True)


def benchmark(command: Sequence[str]) -> dict[str, Any]:
    """Measures in fresh processes.

    Args:
      command: runs a part when `--part=first_answer` or `--part=latency` is added.

    Returns:
      `cold_start_seconds` until the first answer, median of COLD_STARTS processes;
      `rss_bytes` after it and `peak_bytes` up to it; `latency` by kind.
    """
    starts = [
        run_process([*command, "--part=first_answer"]) for _ in range(COLD_STARTS)
    ]
    latency, _ = run_process([*command, "--part=latency"])
    return {
        "cold_start_seconds": statistics.median(seconds for _, seconds in starts),
        "rss_bytes": int(statistics.median(used["rss_bytes"] for used, _ in starts)),
        "peak_bytes": int(statistics.median(used["peak_bytes"] for used, _ in starts)),
        "latency": latency,
    }


def prove(args: argparse.Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    """Checks the artifact and, if that passed, measures it; see `main`."""
    started = time.monotonic()
    command = [sys.executable, "-I", __file__, *arguments]
    try:
        result, _ = run_process([*command, "--part=checks"])
    except Died as error:
        died = {"name": "process", "result": "failed", "detail": str(error)}
        result = {"checks": [died], "figures": {}, "versions": {}}
    checks, figures = result["checks"], result["figures"]
    figures["bytes"] = sum(
        path.stat().st_size
        for path in args.artifact_dir.rglob("*")
        if path.is_file()
        and path.relative_to(args.artifact_dir).as_posix() not in NOT_LISTED
    )
    measurable = args.benchmark and args.held_out
    if measurable and all(check["result"] == "passed" for check in checks):
        try:
            figures.update(benchmark(command))
        except Died as error:
            checks.append(
                {"name": "benchmark", "result": "failed", "detail": str(error)}
            )
    return {
        "format_version": FORMAT_VERSION,
        "passed": all(check["result"] == "passed" for check in checks),
        "seconds": round(time.monotonic() - started, 3),
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            **result["versions"],
        },
        "checks": checks,
        "figures": figures,
    }


def format_table(checks: Sequence[Mapping[str, str]]) -> str:
    """The checks as lines of name, result and detail."""
    width = max(len(check["name"]) for check in checks)
    return "\n".join(
        f"{check['name']:{width}}  {check['result']:7}  {check['detail']}"
        for check in checks
    )


def main(arguments: Sequence[str]) -> int:
    """Proves the artifact that the command line names; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact_dir", type=Path)
    parser.add_argument(
        "held_out",
        type=Path,
        nargs="?",
        help="held-out requests, .npz; without them accuracy is not checked, and "
        "nothing is measured",
    )
    parser.add_argument("--output", type=Path, help="where the result goes, as JSON")
    parser.add_argument(
        "--max_accuracy_drop",
        type=float,
        default=0.5,
        help="points of link accuracy that may be lost",
    )
    parser.add_argument(
        "--max_mentions", type=int, help="check on so many held-out mentions only"
    )
    parser.add_argument(
        "--pad", action="store_true", help="pad all requests to max_seq_length"
    )
    parser.add_argument(
        "--no_benchmark", dest="benchmark", action="store_false", help="only check"
    )
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="how long each latency is measured"
    )
    parser.add_argument(
        "--max_seconds",
        type=float,
        default=MAX_SECONDS,
        help="how long each latency is measured in JavaScript at most",
    )
    parser.add_argument(
        "--held_out_seconds",
        type=float,
        help="check on as many held-out mentions as a slow runtime answers in so many "
        "seconds, and not their link accuracy",
    )
    parser.add_argument(
        "--answers", type=Path, help="where the answers to held-out requests go, .npz"
    )
    parser.add_argument(
        "--same_as", type=Path, help="answers of another runtime, to compare with"
    )
    parser.add_argument(
        "--runtime", choices=TFJS_RUNTIMES, help="where a tfjs artifact runs"
    )
    parser.add_argument("--node", type=Path, help="the Node.js executable")
    parser.add_argument(
        "--packages", type=Path, help="directory whose node_modules has TensorFlow.js"
    )
    parser.add_argument("--chromium", type=Path, help="Chromium's executable")
    # For this script's own children.
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if not args.artifact_dir.is_dir():
        parser.error(f"{args.artifact_dir}: not a directory")
    if args.held_out and not args.held_out.is_file():
        parser.error(f"{args.held_out}: not a file")
    if args.part:
        print_result(PARTS[args.part](args))
        return 0
    result = prove(args, arguments)
    print(format_table(result["checks"]))
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
