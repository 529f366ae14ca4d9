"""TF Serving's gRPC and REST interfaces, in this process, over one SavedModel.

No model server's binary: TensorFlow computes the answers, and the interfaces are those
of tensorflow-serving-api and of https://www.tensorflow.org/tfx/serving/api_rest.
"""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  (registers the tokenizer's operations)
from google.protobuf import any_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)


class Refused(Exception):
    """A request that a model server answers with an error."""

    def __init__(self, code: grpc.StatusCode, message: str):
        super().__init__(message)
        self.code = code


class Model:
    """A SavedModel under a name."""

    def __init__(self, name: str, artifact: Path):
        self.name = name
        self._saved = tf.saved_model.load(str(artifact))

    def inputs(self, name: str, signature_name: str) -> dict[str, tf.TensorSpec]:
        """The inputs of a signature, by their names.

        Raises:
          Refused: no such model or signature.
        """
        if name != self.name:
            raise Refused(
                grpc.StatusCode.NOT_FOUND,
                f"Servable not found for request: Latest({name})",
            )
        if signature_name not in self._saved.signatures:
            raise Refused(
                grpc.StatusCode.INVALID_ARGUMENT,
                f'Serving signature key "{signature_name}" not found.',
            )
        return self._saved.signatures[signature_name].structured_input_signature[1]

    def predict(
        self, name: str, signature_name: str, inputs: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """The signature's outputs.

        Raises:
          Refused: what the signature does not take.
        """
        specs = self.inputs(name, signature_name)
        if set(specs) != set(inputs):
            raise Refused(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"input keys {sorted(inputs)}, expected {sorted(specs)}",
            )
        tensors = {}
        for key, spec in specs.items():
            tensors[key] = tf.constant(inputs[key])
            if tensors[key].dtype != spec.dtype:
                raise Refused(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"{key} is {tensors[key].dtype.name}, expected {spec.dtype.name}",
                )
            if not spec.shape.is_compatible_with(tensors[key].shape):
                raise Refused(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"{key} is {tensors[key].shape}, expected {spec.shape}",
                )
        try:
            outputs = self._saved.signatures[signature_name](**tensors)
        except tf.errors.InvalidArgumentError as error:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, error.message) from error
        return {key: value.numpy() for key, value in outputs.items()}


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """The gRPC interface."""

    def __init__(self, model: Model):
        self._model = model

    def Predict(  # noqa: N802
        self, request: predict_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> predict_pb2.PredictResponse:
        spec = request.model_spec
        inputs = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
        try:
            outputs = self._model.predict(spec.name, spec.signature_name, inputs)
        except Refused as refused:
            context.abort(refused.code, str(refused))
        response = predict_pb2.PredictResponse(model_spec=spec)
        for key, value in outputs.items():
            response.outputs[key].CopyFrom(tf.make_tensor_proto(value))
        return response

    def GetModelMetadata(  # noqa: N802
        self,
        request: get_model_metadata_pb2.GetModelMetadataRequest,
        context: grpc.ServicerContext,
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for name in ("serving_default", "tensors", "text", "link"):
            for key, tensor in self._model.inputs(
                request.model_spec.name, name
            ).items():
                info = signatures.signature_def[name].inputs[key]
                info.dtype = tensor.dtype.as_datatype_enum
                info.tensor_shape.CopyFrom(tensor.shape.as_proto())
        packed = any_pb2.Any()
        packed.Pack(signatures)
        return get_model_metadata_pb2.GetModelMetadataResponse(
            model_spec=request.model_spec, metadata={"signature_def": packed}
        )


@contextlib.contextmanager
def grpc_server(model: Model) -> Iterator[str]:
    """Serves a model on a free port of this machine; yields HOST:PORT."""
    server = grpc.server(futures.ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        PredictionService(model), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@contextlib.contextmanager
def rest_server(model: Model) -> Iterator[str]:
    """As `grpc_server`, for REST."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                status, answer = 200, rest_predict(model, self.path, body)
            except Refused as refused:
                missing = refused.code == grpc.StatusCode.NOT_FOUND
                status, answer = 404 if missing else 400, {"error": str(refused)}
            encoded = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def rest_predict(model: Model, path: str, body: bytes) -> dict[str, Any]:
    """Answers a REST request: `instances` are rows, `inputs` are whole tensors."""
    prefix, verb = "/v1/models/", ":predict"
    if not (path.startswith(prefix) and path.endswith(verb)):
        raise Refused(grpc.StatusCode.NOT_FOUND, f"Malformed request: POST {path}")
    name = path[len(prefix) : -len(verb)]
    request = json.loads(body)
    signature_name = request.get("signature_name", "serving_default")
    specs = model.inputs(name, signature_name)
    if ("instances" in request) == ("inputs" in request):
        raise Refused(
            grpc.StatusCode.INVALID_ARGUMENT, "expected 'instances' or 'inputs'"
        )
    rows = "instances" in request
    values = request["instances"] if rows else request["inputs"]
    if rows:
        if not isinstance(values[0], dict) or set(values[0]) == {"b64"}:
            (only,) = specs
            columns = {only: values}
        else:
            if any(set(value) != set(specs) for value in values):
                raise Refused(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"keys must be equal to: {','.join(sorted(specs))}",
                )
            columns = {key: [value[key] for value in values] for key in specs}
    else:
        columns = values
    inputs = {}
    for key, column in columns.items():
        dtype = specs[key].dtype if key in specs else tf.string
        decoded = decode(column)
        if dtype == tf.string:
            inputs[key] = np.array(decoded, dtype=object)
        else:
            inputs[key] = np.array(decoded, dtype=dtype.as_numpy_dtype)
    outputs = model.predict(name, signature_name, inputs)
    if not rows:
        return {"outputs": {key: value.tolist() for key, value in outputs.items()}}
    if any(not value.shape for value in outputs.values()):
        raise Refused(
            grpc.StatusCode.INVALID_ARGUMENT, "a tensor has no shape information"
        )
    count = len(next(iter(outputs.values())))
    return {
        "predictions": [
            {key: value[row].tolist() for key, value in outputs.items()}
            for row in range(count)
        ]
    }


def decode(value: Any) -> Any:
    """JSON values with strings as bytes; `{"b64": ...}` is a string in base64."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if isinstance(value, dict):
        return base64.b64decode(value["b64"])
    return value.encode() if isinstance(value, str) else value
