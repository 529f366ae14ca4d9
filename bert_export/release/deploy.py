"""Writes set-ups that serve published artifacts: TF Serving, Triton, KServe."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
import statistics
import string
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from bert_export.config import MODEL_NAME, SAVED_MODELS, Target
from bert_export.errors import StageError, UserError
from bert_export.export import (
    onnx,
    openvino,
    publish,
    requests,
    saved_model,
    serving_model,
)
from bert_export.features.spec import FeatureSpec
from bert_export.files import write_text
from bert_export.release import manifest
from bert_export.training.model_fn import PROBABILITIES

# That of the TensorFlow that writes the SavedModels; any from 2.12 on has the
# tokenizer's operations.
TF_SERVING_VERSION = "2.15.1"
# That of the tritonclient whose protocol buffers the tests hold config.pbtxt against.
TRITON_VERSION = "24.10"

_TEMPLATES = Path(__file__).with_name("deploy_templates")
_BACKENDS = {
    "onnx": ("onnxruntime", (onnx.MODEL_FILE,)),
    "openvino": ("openvino", (openvino.MODEL_FILE, openvino.WEIGHTS_FILE)),
}
_TRITON_TYPES = {"int64": "TYPE_INT64", "float32": "TYPE_FP32"}
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
# A doubling that brings less is not worth its latency.
_WORTHWHILE_GAIN = 1.1
_LONGEST_WAIT_MICROS = 10_000


@dataclasses.dataclass(frozen=True)
class Batching:
    """How fast an artifact answers batches, and what follows for a model server."""

    measured: tuple[tuple[int, float], ...]  # (rows, median seconds), rows ascending
    threads: int  # cores

    @property
    def best_batch_size(self) -> int:
        """The size from which on examples/s grow by less than 10 % a doubling."""
        best_rows, best_rate = 1, 0.0
        for rows, seconds in self.measured:
            if rows / seconds >= _WORTHWHILE_GAIN * best_rate:
                best_rows, best_rate = rows, rows / seconds
        return best_rows

    @property
    def timeout_micros(self) -> int:
        """The latency of the smallest batch, in hundreds, at most 10 ms."""
        micros = round(self.measured[0][1] * 1e4) * 100
        return min(max(micros, 100), _LONGEST_WAIT_MICROS)


@dataclasses.dataclass(frozen=True)
class _Artifact:
    """A published artifact and what its manifest says."""

    path: Path
    place: str  # relative to the export directory
    described: dict[str, Any]

    @property
    def format(self) -> str:
        return self.described["format"]

    @property
    def target(self) -> Target:
        return Target(self.described["format"], self.described["precision"])

    @property
    def spec(self) -> FeatureSpec:
        features = self.described["features"]
        return FeatureSpec(
            **{**features, "span_fields": tuple(features["span_fields"])}
        )

    @property
    def largest_request(self) -> int:
        """Rows that one request may have whatever is the fastest batch."""
        config = self.described["config"]
        return max(
            config.get("corpus", {}).get("max_candidates", 1),
            config.get("export", {}).get("warmup_requests", 1),
        )

    def examples(self) -> list[bytes]:
        """The golden requests, serialized."""
        path = self.path / saved_model.ASSETS_EXTRA / requests.GOLDEN_FILE
        golden = json.loads(path.read_text(encoding="utf-8"))["requests"]
        return [base64.b64decode(request["example"]) for request in golden]


def write(
    directory: Path,
    *,
    name: str,
    version: int,
    artifacts: Sequence[Path],
    export_dir: Path,
    batching: Mapping[str, Batching] | None = None,
    seconds: float = 8.0,
) -> None:
    """Writes `tf_serving/`, `triton/` and `kserve/` for the artifacts that they serve.

    TensorFlow Serving gets one artifact: the serving_model if there is one, else the
    saved_model, uncompressed if possible. Triton gets all of ONNX and OpenVINO.
    Nothing holds a path of this machine, and the same arguments give the same bytes.
    `directory` appears whole or not at all; it does not appear if no artifact is of
    these formats.

    Args:
      directory: EXPORT_DIR/deploy/<version>, which does not exist.
      name: the name under which the model is served.
      version: the artifacts' number.
      artifacts: published artifacts, EXPORT_DIR/<version> or
        EXPORT_DIR/<target>/<version>.
      export_dir: EXPORT_DIR.
      batching: measured batches by target name. Artifacts that are not in it are
        measured now.
      seconds: about how long that may take for each.

    Raises:
      UserError: `name` is not fit for paths and addresses, or an artifact has no
        manifest.
      StageError: `directory` exists.
    """
    if not MODEL_NAME.fullmatch(name):
        raise UserError(
            f"config.name: expected letters, digits, '_', '-' and '.' only, the first "
            f"a letter, digit or '_', found {name!r}"
        )
    found = [
        _Artifact(path, _relative(path, export_dir), manifest.read(path))
        for path in artifacts
    ]
    served = _served_by_tensorflow(found)
    triton = [artifact for artifact in found if artifact.format in _BACKENDS]
    if served is None and not triton:
        return
    measured = dict(batching or {})
    for artifact in (served, *triton):
        # Triton's OpenVINO backend does not batch.
        if artifact and artifact.format != "openvino":
            key = artifact.target.name
            measured[key] = measured.get(key) or measure_batching(
                artifact.path, seconds
            )
    values = {
        "name": name,
        "version": str(version),
        "service": _service_name(name),
        "tf_serving_version": TF_SERVING_VERSION,
        "triton_version": TRITON_VERSION,
    }
    with publish.staging(directory.parent, version) as staged:
        services = []
        if served:
            batches = measured[served.target.name]
            _write_tf_serving(staged, directory, values, served, batches, export_dir)
            values["artifact"] = served.place
            _render(staged, "kserve/tensorflow.yaml", values)
            services.append(
                f"- `tensorflow.yaml`: `{served.place}`. Its storage has the version's "
                f"directory, `{version}/saved_model.pb`."
            )
        if triton:
            _write_triton(staged, directory, values, triton, measured)
            _render(staged, "kserve/triton.yaml", values)
            services.append(
                "- `triton.yaml`: the models of `../triton`, copied with `cp -rL`."
            )
        _render(staged, "kserve/README.md", {**values, "services": "\n".join(services)})
        publish.publish(staged, directory.parent, version)


def measure_batching(artifact: Path, seconds: float = 8.0) -> Batching:
    """Measures how long batches of real requests take in this process.

    Args:
      artifact: a published saved_model, serving_model or onnx artifact.
      seconds: about how long to measure. Larger batches are left out when time is up,
        or once two doublings in a row brought less than 10 % more examples a second.

    Returns:
      The median of three or more runs for each batch size.

    Raises:
      StageError: the artifact fails on its golden requests.
    """
    loaded = _Artifact(artifact, artifact.name, manifest.read(artifact))
    examples = loaded.examples()
    measured: list[tuple[int, float]] = []
    deadline = time.monotonic() + seconds
    threads = len(os.sched_getaffinity(0))
    try:
        predict = _predictor(loaded)
        for rows in _BATCH_SIZES:
            batch = [examples[number % len(examples)] for number in range(rows)]
            predict(batch)  # the first run traces and allocates
            runs: list[float] = []
            until = time.monotonic() + seconds / len(_BATCH_SIZES)
            while len(runs) < 3 or time.monotonic() < until:
                started = time.perf_counter()
                predict(batch)
                runs.append(time.perf_counter() - started)
            measured.append((rows, statistics.median(runs)))
            best = Batching(tuple(measured), threads).best_batch_size
            if best <= rows // 4 or time.monotonic() > deadline:
                break
    except Exception as error:
        raise StageError(
            f"{artifact}: cannot measure batches: {type(error).__name__}: {error}"
        ) from error
    return Batching(tuple(measured), threads)


def _predictor(artifact: _Artifact) -> Callable[[list[bytes]], Any]:
    """Answers serialized examples with the artifact's own runtime."""
    if artifact.format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(
            str(artifact.path / onnx.MODEL_FILE), providers=["CPUExecutionProvider"]
        )
        spec = artifact.spec
        return lambda batch: session.run(None, requests.dense_batch(batch, spec))
    model = tf.saved_model.load(str(artifact.path))

    def predict(batch: list[bytes]) -> Any:
        # Naming `model` keeps its variables alive.
        signature = model.signatures[saved_model.EXAMPLES_SIGNATURE]
        return signature(**{saved_model.EXAMPLES_INPUT: tf.constant(batch)})

    return predict


def _served_by_tensorflow(artifacts: Sequence[_Artifact]) -> _Artifact | None:
    """The best one for TF Serving: it takes text, and is not compressed."""
    candidates = [a for a in artifacts if a.format in SAVED_MODELS]
    return min(
        candidates,
        key=lambda a: (a.format != "serving_model", a.target.precision != "float32"),
        default=None,
    )


def _write_tf_serving(
    staged: Path,
    directory: Path,
    values: Mapping[str, str],
    artifact: _Artifact,
    batching: Batching,
    export_dir: Path,
) -> None:
    """Everything in `tf_serving/`."""
    here = directory / "tf_serving"
    # The directory that holds the versions, below the mounted export directory.
    parent = os.path.dirname(artifact.place)
    inside = f"/{parent}" if parent else ""
    max_batch_size = max(batching.best_batch_size, artifact.largest_request)
    nil = artifact.described["metrics"].get("nil")
    values = {
        **values,
        "artifact": artifact.place,
        "to_artifact": _relative(artifact.path, here),
        "to_export_dir": _relative(export_dir, here),
        "base_path": f"/models/{values['name']}{inside}",
        "base_path_inside": inside,
        "max_seq_length": str(artifact.described["max_seq_length"]),
        "tolerance": repr(artifact.described["tolerance"][PROBABILITIES]),
        "nil_threshold": repr(float(nil["threshold"]) if nil else 0.0),
        "measured": _measured_comment(batching),
        "best_batch_size": str(batching.best_batch_size),
        "floor": str(artifact.largest_request),
        "max_batch_size": str(max_batch_size),
        "timeout_micros": str(batching.timeout_micros),
        "threads": str(batching.threads),
        # TF Serving's guide: as many batches as threads, for bounded latency.
        "max_enqueued_batches": str(batching.threads),
    }
    takes_text = serving_model.TEXT_SIGNATURE in artifact.described["contract"]
    files = [
        "models.config",
        "models_batched.config",
        "batching_parameters.txt",
        "run_docker.sh",
        "run_docker_batched.sh",
        "run_local.sh",
        "check_server.py",
    ]
    if takes_text:
        files += ["client_text.py", "client_rest.py", "client_grpc.py"]
    for file in files:
        _render(staged, f"tf_serving/{file}", values)
    clients = "clients_text.md" if takes_text else "clients_tensors.md"
    values["clients"] = _rendered(f"tf_serving/{clients}", values)
    values["batching_text"] = (
        _rendered("tf_serving/batching_text.md", values) if takes_text else ""
    )
    _render(staged, "tf_serving/README.md", values)


def _measured_comment(batching: Batching) -> str:
    lines = ["rows   median ms   examples/s"]
    lines += [
        f"{rows:4d}  {seconds * 1e3:10.2f}  {rows / seconds:11.1f}"
        for rows, seconds in batching.measured
    ]
    return "\n".join(f"#   {line}" for line in lines)


def _write_triton(
    staged: Path,
    directory: Path,
    values: Mapping[str, str],
    artifacts: Sequence[_Artifact],
    measured: Mapping[str, Batching],
) -> None:
    """The model repository in `triton/`: a directory a model."""
    version = values["version"]
    for artifact in artifacts:
        model = f"{values['name']}_{artifact.target.name}"
        batching = measured.get(artifact.target.name)
        example = requests.dense_batch(artifact.examples()[:1], artifact.spec)
        config = _triton_config(model, artifact, batching, example)
        write_text(staged / "triton" / model / "config.pbtxt", config)
        for feature, value in example.items():
            path = staged / "triton" / model / "warmup" / feature
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(value.astype("<i8").tobytes())
        place = directory / "triton" / model / version
        links = staged / "triton" / model / version
        links.mkdir()
        for file in _BACKENDS[artifact.format][1]:
            (links / file).symlink_to(_relative(artifact.path / file, place))
    models = "\n".join(
        f"- `{values['name']}_{artifact.target.name}`: `{artifact.place}`, "
        f"by the backend `{_BACKENDS[artifact.format][0]}`"
        for artifact in artifacts
    )
    spec = artifacts[0].spec
    extra = {
        "models": models,
        "max_seq_length": str(spec.max_seq_length),
        "mask": spec.input_mask,
    }
    _render(staged, "triton/README.md", {**values, **extra})


def _triton_config(
    model: str,
    artifact: _Artifact,
    batching: Batching | None,
    example: Mapping[str, np.ndarray],
) -> str:
    """A config.pbtxt: Triton's `ModelConfig` in text format.

    https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto

    Args:
      model: its name, that of its directory.
      artifact: an artifact whose contract has one signature of tensors.
      batching: None for a model that Triton does not batch.
      example: a request of one row, for the warm-up.
    """
    contract = artifact.described["contract"]
    signature = contract[saved_model.TENSORS_SIGNATURE]
    backend, files = _BACKENDS[artifact.format]
    lines = [
        f'name: "{model}"',
        f'backend: "{backend}"',
        f'default_model_filename: "{files[0]}"',
    ]
    batched = batching is not None
    if batching is not None:
        size = max(batching.best_batch_size, artifact.largest_request)
        lines += ["# Measured on the exporting machine:", _measured_comment(batching)]
        lines += [f"max_batch_size: {size}"]
        lines += ["dynamic_batching {", "  max_queue_delay_microseconds: 0", "}"]
    else:
        lines += ["max_batch_size: 0"]
    for kind in ("input", "output"):
        for name, info in signature[f"{kind}s"].items():
            lines += [f"{kind} {{", f'  name: "{name}"']
            lines += [f"  data_type: {_TRITON_TYPES[info['dtype']]}"]
            lines += [f"  {line}" for line in _triton_dims(info["shape"], batched)]
            lines += ["}"]
    lines += ["instance_group {", "  count: 1", "  kind: KIND_CPU", "}"]
    lines += ["model_warmup {", '  name: "golden request"', "  batch_size: 1"]
    for name, value in example.items():
        shape = list(value.shape)
        dims = (shape[1:] or [1]) if batched else shape
        lines += ["  inputs {", f'    key: "{name}"', "    value {"]
        lines += ["      data_type: TYPE_INT64"]
        lines += [f"      dims: {dims}", f'      input_data_file: "{name}"']
        lines += ["    }", "  }"]
    lines += ["}"]
    return "\n".join(lines) + "\n"


def _triton_dims(shape: Sequence[int], batched: bool) -> list[str]:
    """A tensor's shape; without the batch dimension where Triton adds it."""
    if not batched:
        return [f"dims: {list(shape)}"]
    if len(shape) == 1:
        # [batch] alone: Triton asks for a further dimension, and takes it away again.
        return ["dims: [1]", "reshape { shape: [] }"]
    return [f"dims: {list(shape[1:])}"]


def _service_name(name: str) -> str:
    """A Kubernetes name (RFC 1035): a-z, 0-9 and '-', a letter first, not too long."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not plain[:1].isalpha():
        plain = f"model-{plain}".rstrip("-")
    # KServe appends to it, and 63 characters are the limit.
    return plain[:40].rstrip("-")


def _relative(path: Path, start: Path) -> str:
    return Path(os.path.relpath(path, start)).as_posix()


def _render(staged: Path, file: str, values: Mapping[str, str]) -> None:
    write_text(staged / file, _rendered(file, values))


def _rendered(file: str, values: Mapping[str, str]) -> str:
    template = string.Template((_TEMPLATES / file).read_text(encoding="utf-8"))
    return template.substitute(values)
