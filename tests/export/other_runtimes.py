"""Runs the tiny linker's artifacts in processes that hold one runtime only."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from bert_export.config import FeaturesConfig
from bert_export.export.linker_graph import OUTPUTS, TrainedLinker
from tests import tiny_artifact

# What a process loads and how it predicts: `predict` takes and returns arrays by name.
OPENVINO = """
sys.modules["openvino_telemetry"] = None
import openvino
core = openvino.Core()
options = {"INFERENCE_PRECISION_HINT": "f32"}
compiled = core.compile_model(f"{artifact}/model.xml", "CPU", options)
names = [port.get_any_name() for port in compiled.outputs]
predict = lambda inputs: dict(zip(names, compiled(inputs).values()))
"""
TFLITE = """
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(f"{artifact}/model.tflite")
runner = interpreter.get_signature_runner("tensors")
predict = lambda inputs: runner(**inputs)
"""
_SCRIPT = """
import sys
import numpy as np
artifact, requests, answers = sys.argv[1:]
{load}
loaded = dict(np.load(requests))
results = {{}}
for number in sorted({{name.split("/")[0] for name in loaded}}):
    inputs = {{
        name.split("/")[1]: value
        for name, value in loaded.items()
        if name.startswith(number + "/")
    }}
    for name, value in predict(inputs).items():
        results[f"{{number}}/{{name}}"] = np.array(value)
np.savez(answers, **results)
foreign = {{"tensorflow", "bert_export", "nncf", "ai_edge_quantizer"}}
foreign &= set(sys.modules)
assert not foreign, foreign
"""


@functools.cache
def model() -> TrainedLinker:
    return TrainedLinker(
        tiny_artifact.trained().checkpoint,
        tiny_artifact.BERT,
        FeaturesConfig(max_seq_length=20),
        tiny_artifact.TOKENIZER,
    )


def batches(*sizes: int, padded: bool = False) -> list[dict[str, np.ndarray]]:
    """Requests of so many rows each, the first rows of all."""
    trained = tiny_artifact.trained()
    examples = (trained.examples * 2)[: max(sizes)]
    result = []
    for size in sizes:
        spec = trained.spec
        parsed = spec.parse(tf.constant(examples[:size]), spec.serving_parsing_spec())
        batch = {name: parsed[name].numpy() for name in model().input_names}
        for name in spec.sequence_names if padded else ():
            missing = spec.max_seq_length - batch[name].shape[1]
            batch[name] = np.pad(batch[name], [(0, 0), (0, missing)])
        result.append(batch)
    return result


@functools.cache
def expected() -> dict[str, np.ndarray]:
    """What `estimator.predict` says of each row."""
    trained = tiny_artifact.trained()
    (batch,) = batches(33)
    predictions = list(
        trained.estimator.predict(
            lambda: tf.data.Dataset.from_tensors(batch),
            checkpoint_path=trained.checkpoint,
        )
    )
    return {name: np.array([row[name] for row in predictions]) for name in OUTPUTS}


def run(
    load: str, artifact: Path, requests: list[dict[str, np.ndarray]]
) -> list[dict[str, np.ndarray]]:
    """The artifact's answers, in a process without TensorFlow."""
    arrays = {
        f"{number:03}/{name}": value
        for number, batch in enumerate(requests)
        for name, value in batch.items()
    }
    np.savez(artifact / "requests.npz", **arrays)
    done = subprocess.run(
        [
            *(sys.executable, "-I", "-c", _SCRIPT.format(load=load), str(artifact)),
            *(str(artifact / "requests.npz"), str(artifact / "answers.npz")),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = np.load(artifact / "answers.npz")
    return [
        {name: answers[f"{number:03}/{name}"] for name in OUTPUTS}
        for number in range(len(requests))
    ]


def largest_difference(load: str, artifact: Path) -> float:
    """Between an artifact's probabilities and the estimator's.

    In batches of several sizes, padded and not, and beside a row of zeros, which must
    be finite.
    """
    requests = batches(1, 2, 33) + batches(5, padded=True) + batches(3)
    for value in requests[-1].values():
        value[1] = 0
    right = expected()
    differences = []
    for number, answer in enumerate(run(load, artifact, requests)):
        size = len(answer["score"])
        for name in OUTPUTS:
            assert answer[name].dtype == np.float32
            assert answer[name].shape == right[name][:size].shape
            assert np.isfinite(answer[name]).all()
        difference = np.abs(answer["probabilities"] - right["probabilities"][:size])
        if number == len(requests) - 1:
            difference = np.delete(difference, 1, axis=0)
        differences.append(float(difference.max()))
    return max(differences)
