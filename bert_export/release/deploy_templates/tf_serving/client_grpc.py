"""Ranks a mention's candidates with a served linker, over gRPC.

Needs grpcio and tensorflow-serving-api. The latter takes its tensors' protocol buffers
from TensorFlow, which it imports: that takes seconds. A service generates them from
TensorFlow Serving's .proto files instead.
Exit codes: 0 answered, 1 refused or not reached, 2 bad arguments.
"""

from __future__ import annotations

import sys
from typing import Any

import grpc
import tensorflow as tf
from client_text import Mention, Ranking, parse_arguments, print_ranking, rank_rows
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc


def link_inputs(mention: Mention, candidates: list[str]) -> dict[str, Any]:
    """The inputs of `link`: one mention, and its candidates as a vector."""
    return {
        "text": tf.make_tensor_proto(mention.text),
        "mention_start": tf.make_tensor_proto(mention.start, tf.int64),
        "mention_end": tf.make_tensor_proto(mention.end, tf.int64),
        "candidates": tf.make_tensor_proto(candidates),
    }


def text_inputs(mention: Mention, candidates: list[str]) -> dict[str, Any]:
    """The inputs of `text`: a row a candidate."""
    count = len(candidates)
    return {
        "text": tf.make_tensor_proto([mention.text] * count),
        "mention_start": tf.make_tensor_proto([mention.start] * count, tf.int64),
        "mention_end": tf.make_tensor_proto([mention.end] * count, tf.int64),
        "candidate": tf.make_tensor_proto(candidates),
    }


def main() -> int:
    """Asks once and prints the answer."""
    args = parse_arguments(__doc__, port=8500)
    request = predict_pb2.PredictRequest()
    request.model_spec.name = args.model
    request.model_spec.signature_name = args.signature
    make_inputs = link_inputs if args.signature == "link" else text_inputs
    for name, tensor in make_inputs(args.text, args.candidate).items():
        request.inputs[name].CopyFrom(tensor)
    with grpc.insecure_channel(args.host) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        try:
            response = stub.Predict(request, timeout=args.timeout)
        except grpc.RpcError as error:
            print(f"{error.code().name}: {error.details()}", file=sys.stderr)
            return 1
    outputs = {
        name: tf.make_ndarray(tensor).tolist()
        for name, tensor in response.outputs.items()
    }
    if args.signature == "link":
        ranking = Ranking(
            outputs["probabilities"], outputs["link_probability"], outputs["score"]
        )
    else:
        ranking = rank_rows(outputs["probabilities"], outputs["score"])
    print_ranking(args.candidate, ranking)
    return 0


if __name__ == "__main__":
    sys.exit(main())
