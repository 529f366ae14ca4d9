"""Who takes part: everything that answers requests, and how it is started."""

from __future__ import annotations

import dataclasses

FLOAT32, BFLOAT16, INT8 = "float32", "bfloat16", "int8"
# Of the goals "at equal precision", each for one kind of requests: how many times as
# fast as the best peer.
PRECISION_GOALS = {"mentions": 1.5, "batches": 2.0}
# How many times as fast as GOOGLE the best artifact is to be.
GOOGLE_GOAL = 20.0
GOOGLE = "google_saved_model"
# The part of ESTIMATOR's time that the best artifact may take to its first answer.
COLD_GOAL = 0.1
ESTIMATOR = "estimator"
# Points of link accuracy within which all are to be.
ACCURACY_POINTS = 0.5
# A request takes seconds: one a round, and nothing before.
SLOW = ("google_estimator",)
# Whose scores are another's, with the same weights in the same graph.
SAME_SCORES = {"google_estimator": GOOGLE}
# Whose cold start is measured, each in fresh processes.
COLD = (
    ESTIMATOR,
    "saved_model",
    "onnx",
    "onnx_int8_dynamic",
    "onnx_int8_calibrated",
    "openvino",
    "cross_encoder",
    "cross_encoder_onnx",
    GOOGLE,
)
# Those of --quick.
QUICK = (ESTIMATOR, "saved_model", "serving_model", "onnx", "onnx_int8_dynamic")
# What the others' speed and accuracy is compared with.
REFERENCE = "saved_model"


@dataclasses.dataclass(frozen=True)
class Contender:
    """A model in a runtime, in a process of its own."""

    name: str
    title: str
    precision: str
    program: str  # its worker, in this directory
    model: str  # its directory below the model's
    environment: str | None  # a peer's (peers.PEERS); None: ours
    base: bool = True  # takes part at the size of BERT-base, too
    turns: bool = True  # takes turns with the others; else it only starts

    @property
    def is_ours(self) -> bool:
        """Whether it runs what bert_export has exported."""
        return self.model.startswith("ours/")


def _ours(
    name: str,
    title: str,
    precision: str,
    program: str,
    target: str,
    environment: str | None = None,
    base: bool = True,
    turns: bool = True,
) -> Contender:
    return Contender(
        name, title, precision, program, f"ours/{target}", environment, base, turns
    )


def _pytorch(name: str, title: str, precision: str, base: bool = True) -> Contender:
    return Contender(
        name, title, precision, "pytorch.py", "peers/pytorch", "pytorch", base
    )


def _google(name: str, title: str, base: bool = True) -> Contender:
    return Contender(
        name, title, FLOAT32, "google_bert.py", "peers/google", "google_bert", base
    )


_TENSORFLOW, _RUNTIMES = "ours_tensorflow.py", "ours_runtimes.py"
CONTENDERS = (
    _ours("saved_model", "saved_model", FLOAT32, _TENSORFLOW, "saved_model"),
    _ours(
        "serving_model",
        "serving_model",
        FLOAT32,
        _TENSORFLOW,
        "serving_model",
        base=False,
    ),
    _ours("onnx", "onnx", FLOAT32, _RUNTIMES, "onnx", "runtimes"),
    _ours("openvino", "openvino", FLOAT32, _RUNTIMES, "openvino", "runtimes"),
    _ours(
        "saved_model_bfloat16",
        "saved_model, grappler's bfloat16",
        BFLOAT16,
        _TENSORFLOW,
        "saved_model",
    ),
    _ours(
        "openvino_bfloat16",
        "openvino, bfloat16 hint",
        BFLOAT16,
        _RUNTIMES,
        "openvino",
        "runtimes",
    ),
    *(
        _ours(
            f"{runtime}_{precision}",
            f"{runtime}/{precision}",
            INT8,
            _RUNTIMES,
            f"{runtime}_{precision}",
            "runtimes",
        )
        for runtime in ("onnx", "openvino")
        for precision in ("int8_dynamic", "int8_calibrated")
    ),
    _ours(
        ESTIMATOR,
        "checkpoint, estimator.predict",
        FLOAT32,
        _TENSORFLOW,
        "estimator",
        turns=False,
    ),
    _pytorch("cross_encoder", "CrossEncoder, torch", FLOAT32),
    _pytorch("cross_encoder_compile", "CrossEncoder, torch.compile", FLOAT32, False),
    _pytorch("cross_encoder_onnx", "CrossEncoder, onnx", FLOAT32),
    _pytorch("cross_encoder_onnx_o3", "CrossEncoder, onnx, O3", FLOAT32, False),
    _pytorch("cross_encoder_openvino", "CrossEncoder, openvino", FLOAT32),
    _pytorch("transformers", "transformers, PyTorch", FLOAT32, False),
    _pytorch("cross_encoder_bfloat16", "CrossEncoder, torch, bfloat16", BFLOAT16),
    _pytorch(
        "cross_encoder_openvino_bfloat16", "CrossEncoder, openvino, bfloat16", BFLOAT16
    ),
    _pytorch("cross_encoder_onnx_int8", "CrossEncoder, onnx, int8", INT8),
    _pytorch("cross_encoder_openvino_int8", "CrossEncoder, openvino, int8", INT8),
    _google("google_estimator", "google-research BERT, estimator.predict", False),
    _google(GOOGLE, "google-research BERT, SavedModel"),
)
BY_NAME = {contender.name: contender for contender in CONTENDERS}
