"""What artifacts are measured against: `estimator.predict`, and computing padding."""

from __future__ import annotations

import argparse
import base64
import dataclasses
import functools
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from bert_export.config import Config, FeaturesConfig
from bert_export.errors import StageError
from bert_export.export import linker_graph, saved_model
from bert_export.export.linker_graph import OUTPUTS, TrainedLinker
from bert_export.features.spec import FeatureSpec
from bert_export.files import sha256_file, write_json
from bert_export.modeling.bert_config import BertConfig
from bert_export.training.estimator import create_estimator
from bert_export.training.model_fn import PROBABILITIES, SCORE, ModelParams
from bert_export.verification import proof, prove, report

# A graph is built and a checkpoint restored in each, which takes seconds.
ESTIMATOR_RUNS = 3
# Mentions on which the padded SavedModel is compared with the trained model.
PADDED_MENTIONS = 32


def measure(
    model: TrainedLinker, held_out: proof.HeldOut, seconds: float = 5.0
) -> list[dict[str, Any]]:
    """Measures what people have before they export: rows for the report.

    One is the unfrozen checkpoint: every request is a call of `estimator.predict`,
    which builds the graph and restores the checkpoint each time. The other is the
    SavedModel of an implementation that computes padding: every request is padded to
    max_seq_length.

    Args:
      model: what the artifacts were made from.
      held_out: the requests that they were proven with.
      seconds: how long each latency of the SavedModel is measured.

    Raises:
      StageError: one could not be measured.
    """
    answered = prove.read_held_out(held_out.path)
    accuracy = prove.link_accuracy(answered, answered.score)
    reference = {
        "mentions": held_out.mentions,
        "pairs": held_out.pairs,
        "link_accuracy": accuracy,
        "reference_link_accuracy": accuracy,
        "accuracy_drop": 0.0,
        "top1_changed": 0,
        "max_difference": 0.0,
    }
    with tempfile.TemporaryDirectory(prefix="bert_export_baselines_") as temporary:
        directory = Path(temporary)
        padded = _write_padded(model, answered, directory / "padded")
        result = proof.run(
            padded,
            held_out.path,
            ["--pad", f"--max_mentions={PADDED_MENTIONS}", f"--seconds={seconds}"],
        )
        if not result["passed"]:
            broken = "; ".join(
                f"{check['name']}: {check['detail']}"
                for check in result["checks"]
                if check["result"] == "failed"
            )
            raise StageError(f"the padded SavedModel cannot be measured: {broken}")
        figures = result["figures"]
        return [
            report.baseline_row(
                "estimator.predict",
                {
                    **reference,
                    "bytes": _checkpoint_bytes(model.checkpoint),
                    **_measure_estimator(model, held_out.path, directory),
                },
                [
                    "the unfrozen checkpoint: each request builds the graph and "
                    f"restores the weights; {ESTIMATOR_RUNS} runs of each kind",
                    "its accuracy is the reference; its size includes the optimizer's "
                    f"slots, without them it is "
                    f"{_directory_bytes(padded / 'variables') / 1e6:.1f} MB",
                ],
            ),
            report.baseline_row(
                "padded SavedModel",
                {
                    # Compared on fewer mentions, as it is slow.
                    **(reference if not figures["top1_changed"] else {}),
                    **{
                        key: figures[key]
                        for key in (
                            "max_difference",
                            "bytes",
                            "cold_start_seconds",
                            "rss_bytes",
                            "peak_bytes",
                            "latency",
                        )
                    },
                },
                [
                    f"all requests padded to {model.features.max_seq_length} tokens "
                    "and computed so",
                    f"compared on {figures['mentions']} mentions only, of which "
                    f"{figures['top1_changed']} are linked otherwise than by the "
                    "trained model; its accuracy is taken to be the trained model's",
                ],
            ),
        ]


def _checkpoint_bytes(prefix: str) -> int:
    """Size of a checkpoint's files, without the graph in its .meta."""
    path = Path(prefix)
    files = [Path(f"{prefix}.index"), *path.parent.glob(f"{path.name}.data-*")]
    return sum(file.stat().st_size for file in files)


def _directory_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _write_padded(
    model: TrainedLinker, held_out: prove.HeldOut, directory: Path
) -> Path:
    """Writes the padded graph as a SavedModel that `prove.py` can read.

    Its golden requests are those of the first held-out mention.
    """
    spec = model.spec
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        saver = linker_graph.build(model, checked=False, padded=True)
        saver.restore(session, model.checkpoint)
        tensor = session.graph.get_tensor_by_name
        builder = tf.compat.v1.saved_model.Builder(str(directory))
        builder.add_meta_graph_and_variables(
            session,
            [tf.saved_model.SERVING],
            {
                saved_model.TENSORS_SIGNATURE: (
                    tf.compat.v1.saved_model.predict_signature_def(
                        {name: tensor(f"{name}:0") for name in model.input_names},
                        {name: tensor(f"{name}:0") for name in OUTPUTS},
                    )
                )
            },
            saver=saver,
        )
        builder.save()
    golden = []
    for row, probabilities, score in zip(
        held_out.mentions[0], held_out.probabilities, held_out.score
    ):
        values: dict[str, Any] = dict(zip(spec.sequence_names, row.tokens.tolist()))
        values.update(zip(spec.span_fields, row.spans.tolist()))
        golden.append(
            {
                "example": base64.b64encode(spec.encode_example(values)).decode(),
                "probabilities": probabilities.tolist(),
                "score": float(score),
            }
        )
    write_json(directory / prove.GOLDEN, {"requests": golden})
    tokens = {"dtype": "int64", "shape": [-1, -1]}
    write_json(
        directory / prove.MANIFEST,
        {
            "format_version": prove.FORMAT_VERSION,
            "name": "padded",
            "format": "saved_model",
            "precision": "float32",
            "tolerance": {PROBABILITIES: 1e-4, SCORE: 1e-4},
            "contract": {
                saved_model.TENSORS_SIGNATURE: {
                    "inputs": {
                        name: {"dtype": "int64", "shape": [-1]}
                        if name in spec.span_fields
                        else tokens
                        for name in model.input_names
                    },
                    "outputs": {
                        PROBABILITIES: {"dtype": "float32", "shape": [-1, 2]},
                        SCORE: {"dtype": "float32", "shape": [-1]},
                    },
                }
            },
            "max_seq_length": spec.max_seq_length,
            "features": dataclasses.asdict(spec),
            "files": {
                path.relative_to(directory).as_posix(): {
                    "sha256": sha256_file(path),
                    "bytes": path.stat().st_size,
                }
                for path in directory.rglob("*")
                if path.is_file()
            },
        },
    )
    return directory


# --- estimator.predict, in processes of its own -------------------------------------


def _measure_estimator(
    model: TrainedLinker, held_out: Path, directory: Path
) -> dict[str, Any]:
    """The figures of `prove.benchmark` for `estimator.predict`."""
    described = directory / "model.json"
    write_json(
        described,
        {
            "checkpoint": model.checkpoint,
            "bert": dataclasses.asdict(model.bert),
            "features": dataclasses.asdict(model.features),
        },
    )
    root = str(Path(__file__).parents[2])
    program = (
        f"import sys; sys.path.insert(0, {root!r}); "
        "from bert_export.verification import baselines; "
        "baselines.main(sys.argv[1:])"
    )
    try:
        return prove.benchmark(
            [sys.executable, "-c", program, str(described), str(held_out)]
        )
    except prove.Died as error:
        raise StageError(f"estimator.predict cannot be measured: {error}") from error


def main(arguments: Sequence[str]) -> None:
    """A process of `prove.benchmark`: measures one part and prints its result."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("--part", choices=["first_answer", "latency"], required=True)
    args = parser.parse_args(arguments)
    described = json.loads(args.model.read_text(encoding="utf-8"))
    # JSON has lists for tuples.
    options: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in described["features"].items()
    }
    features = FeaturesConfig(**options)
    held_out = prove.read_held_out(args.held_out)
    with tempfile.TemporaryDirectory() as model_dir:
        estimator = _estimator(
            BertConfig(**described["bert"]), features, Path(model_dir)
        )
        answer = functools.partial(
            _predict,
            estimator,
            described["checkpoint"],
            FeatureSpec.from_config(features),
        )
        if args.part == "first_answer":
            answer(held_out.typical_mention())
            prove.print_result(prove.memory())
            return
        prove.print_result(
            {
                name: {
                    **prove.time_requests(
                        requests,
                        answer,
                        seconds=0,
                        warm_up=1,
                        min_runs=ESTIMATOR_RUNS,
                    ),
                    "pairs": float(np.mean([len(request) for request in requests])),
                }
                for name, requests in prove.request_kinds(held_out).items()
            }
        )


def _estimator(bert: BertConfig, features: FeaturesConfig, model_dir: Path) -> Any:
    config = Config(features=features)
    params = ModelParams(
        FeatureSpec.from_config(features),
        bert,
        config.train,
        num_train_steps=1,
        pretrained=None,
    )
    return create_estimator(config, params, model_dir)


def _predict(
    estimator: Any, checkpoint: str, spec: FeatureSpec, rows: Sequence[prove.Row]
) -> None:
    """One request: a call of `estimator.predict` with a batch of unpadded rows."""
    longest = max(row.tokens.shape[1] for row in rows)
    tokens = np.zeros((len(spec.sequence_names), len(rows), longest), np.int64)
    for number, row in enumerate(rows):
        tokens[:, number, : row.tokens.shape[1]] = row.tokens
    features = dict(zip(spec.sequence_names, tokens))
    spans = np.stack([row.spans for row in rows], axis=1)
    features.update(zip(spec.span_fields, spans))
    for _ in estimator.predict(
        lambda: tf.data.Dataset.from_tensors(features),
        checkpoint_path=checkpoint,
    ):
        pass
