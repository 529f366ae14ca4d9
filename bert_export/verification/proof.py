"""Records what the trained model answers to held-out requests; proves artifacts."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from bert_export import javascript
from bert_export.errors import StageError, UserError
from bert_export.export.publish import PROOF_FILE, SMOKE_TEST_FILE
from bert_export.features.records import RecordSet
from bert_export.features.spec import FeatureSpec
from bert_export.files import write_bytes, write_json
from bert_export.training.input_fn import chosen_mentions, ordered_input_fn
from bert_export.training.model_fn import PROBABILITIES, SCORE
from bert_export.verification.prove import TFJS_RUNTIMES
from bert_export.verification.run import passed

SCRIPT = Path(__file__).with_name("prove.py")
_STDERR_LINES = 15
# By precision, how far an artifact's answers to the golden requests may be from the
# trained model's: the probabilities, absolutely, and the score, absolutely up to 1
# and relatively above. float32 allows for another order of summation in another
# runtime. The others are no measure of quality, which is the link accuracy that the
# proof holds them to: they catch a model that is wired wrongly.
TOLERANCES: dict[str, dict[str, float]] = {
    "float32": {PROBABILITIES: 1e-4, SCORE: 1e-4},
    "float16": {PROBABILITIES: 0.02},
    "bfloat16": {PROBABILITIES: 0.1},
    "int8_dynamic": {PROBABILITIES: 0.35},
    "int8_calibrated": {PROBABILITIES: 0.35},
    "uint8": {PROBABILITIES: 0.35},
}
# Where a tfjs artifact answers every held-out request; the others take too long.
_THOROUGH = ("node-tfjs", "node-wasm")
# How long they answer held-out requests, and measure each latency at most.
_HELD_OUT_SECONDS = 20
_MAX_LATENCY_SECONDS = 10
_NO_CHROMIUM = (
    "not run: no Chromium was found; install one (Debian: apt-get install chromium) or "
    "name one with CHROMIUM_PATH"
)


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Requests that training has not seen, and the trained model's answers.

    Attributes:
      path: the file that `prove.py` reads.
      split: where they are from.
      mentions: how many they are.
      pairs: their candidates together.
    """

    path: Path
    split: str
    mentions: int
    pairs: int


def record_held_out(
    estimator: Any,
    checkpoint: str,
    records: RecordSet,
    spec: FeatureSpec,
    mentions_per_batch: int,
    max_mentions: int,
    path: Path,
) -> HeldOut:
    """Records what `estimator.predict` answers for mentions spread over a split.

    The file is an .npz: `input_ids`, `input_mask` and `segment_ids` [tokens],
    unpadded, with `row_splits` [pairs + 1], where each pair's tokens end; `spans`
    [pairs, number of span fields]; `mention_sizes` and `gold` [mentions] as in
    `RecordSet`; `probabilities` [pairs, 2] and `score` [pairs] float32.

    Args:
      estimator: the trained Estimator.
      checkpoint: the checkpoint's prefix, the one that is exported.
      records: the split.
      spec: its features.
      mentions_per_batch: whole mentions a batch.
      max_mentions: at most so many.
      path: the file to write.

    Returns:
      What was recorded.

    Raises:
      UserError: the split has no mention with candidates.
      StageError: a prediction is not finite.
    """
    chosen = chosen_mentions(records, max_mentions)
    if not len(chosen):
        raise UserError(
            f"the {records.split} split has no mention with candidates to prove "
            "artifacts on; set config.eval.split to one that has some"
        )
    batches = ordered_input_fn(records, spec, mentions_per_batch, max_mentions)
    lengths: list[np.ndarray] = []
    tokens: list[list[np.ndarray]] = [[] for _ in spec.sequence_names]
    spans: list[np.ndarray] = []
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        features, _ = tf.compat.v1.data.make_one_shot_iterator(batches()).get_next()
        while True:
            try:
                batch = session.run(features)
            except tf.errors.OutOfRangeError:
                break
            row_lengths = batch[spec.input_mask].sum(axis=1)
            lengths.append(row_lengths)
            width = batch[spec.input_ids].shape[1]
            is_token = np.arange(width) < row_lengths[:, np.newaxis]
            for parts, name in zip(tokens, spec.sequence_names):
                parts.append(batch[name][is_token])
            columns = [batch[name] for name in spec.span_fields]
            spans.append(
                np.stack(columns, axis=1)
                if columns
                else np.zeros((len(row_lengths), 0), np.int64)
            )
    sizes = records.mention_sizes[chosen]
    pairs = int(sizes.sum())
    probabilities = np.empty((pairs, 2), np.float32)
    score = np.empty(pairs, np.float32)
    predictions = estimator.predict(batches, checkpoint_path=checkpoint)
    with tqdm(
        predictions, total=pairs, unit="pair", desc="held-out mentions", disable=None
    ) as progress:
        for row, prediction in enumerate(progress):
            probabilities[row] = prediction[PROBABILITIES]
            score[row] = prediction[SCORE]
    if not (np.isfinite(probabilities).all() and np.isfinite(score).all()):
        raise StageError(
            f"the trained model's predictions for the {records.split} split are not "
            f"finite; the checkpoint {checkpoint} is not fit to be exported"
        )
    content = io.BytesIO()
    np.savez_compressed(
        content,
        input_ids=np.concatenate(tokens[0]),
        input_mask=np.concatenate(tokens[1]),
        segment_ids=np.concatenate(tokens[2]),
        row_splits=np.concatenate([[0], np.cumsum(np.concatenate(lengths))]),
        spans=np.concatenate(spans),
        mention_sizes=sizes,
        gold=records.gold[chosen],
        probabilities=probabilities,
        score=score,
    )
    write_bytes(path, content.getvalue())
    return HeldOut(path, records.split, len(chosen), pairs)


def prove(
    artifact: Path,
    held_out: Path,
    max_accuracy_drop: float,
    benchmark: bool,
    seconds: float = 5.0,
) -> dict[str, Any]:
    """Proves an artifact in processes that hold its runtime and nothing of ours.

    The result also goes to PROOF_FILE in the artifact.

    Args:
      artifact: the artifact, complete with its manifest.
      held_out: the file of `record_held_out`.
      max_accuracy_drop: points of link accuracy that it may lose.
      benchmark: measure cold start, memory and latency, too.
      seconds: how long each latency is measured.

    Returns:
      The result: `passed`, `seconds`, `versions`, `checks` (each `name`, `result`,
      `detail`) and `figures`.

    Raises:
      StageError: a check failed; it is named. The result is written all the same.
    """
    result = run(
        artifact,
        held_out,
        [f"--max_accuracy_drop={max_accuracy_drop}", f"--seconds={seconds}"]
        + ([] if benchmark else ["--no_benchmark"]),
    )
    return passed("the proof", result)


def skipped(result: Mapping[str, Any]) -> list[str]:
    """What a passed proof left out, each with its reason."""
    return [
        f"{check['name']}: {check['detail']}"
        for check in result["checks"]
        if check["result"] == "skipped"
    ]


def check(artifact: Path) -> dict[str, Any]:
    """The part of `prove` that needs no held-out requests.

    The result goes to SMOKE_TEST_FILE in the artifact.
    """
    return passed("the proof", run(artifact, None, [], SMOKE_TEST_FILE))


def run(
    artifact: Path,
    held_out: Path | None,
    options: Sequence[str],
    output_file: str = PROOF_FILE,
) -> dict[str, Any]:
    """Runs `prove.py`; see `prove`. Without held-out requests it only checks.

    A tfjs artifact is proven in each of TensorFlow.js' runtimes, and passes if it
    passes in all of them. The checks have the runtime's name before theirs; where
    there is no Chromium, its runtimes have one that is `skipped`. `figures` are those
    of the first runtime, and those of each under `runtimes`.

    Raises:
      UserError: it is a tfjs artifact, and Node.js or its packages cannot be had.
      StageError: it ended without a result.
    """
    output = artifact / output_file
    output.unlink(missing_ok=True)
    if _format(artifact) != "tfjs":
        return _run_script(artifact, held_out, options, output)
    result = _run_in_javascript(artifact, held_out, options)
    write_json(output, result)
    return result


def _format(artifact: Path) -> str | None:
    """The artifact's format; None where the script will say what is wrong."""
    try:
        return json.loads((artifact / "manifest.json").read_text("utf-8"))["format"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _run_in_javascript(
    artifact: Path, held_out: Path | None, options: Sequence[str]
) -> dict[str, Any]:
    """Runs `prove.py` once a runtime and puts the results together."""
    started = time.monotonic()
    chromium = javascript.chromium()
    tools = [f"--node={javascript.node()}", f"--packages={javascript.packages()}"]
    if chromium:
        tools.append(f"--chromium={chromium}")
    results: dict[str, dict[str, Any]] = {}
    checks: list[dict[str, str]] = []
    with (
        tempfile.TemporaryDirectory() as directory,
        tqdm(TFJS_RUNTIMES, unit="runtime", desc="TensorFlow.js", disable=None) as bar,
    ):
        answers = Path(directory) / "answers.npz"
        for runtime in bar:
            if runtime.startswith("chromium-") and not chromium:
                checks.append(
                    {"name": runtime, "result": "skipped", "detail": _NO_CHROMIUM}
                )
                continue
            own = [f"--runtime={runtime}", *tools]
            if runtime != TFJS_RUNTIMES[0]:
                own.append(f"--max_seconds={_MAX_LATENCY_SECONDS}")
                if answers.exists():
                    own.append(f"--same_as={answers}")
            elif held_out:
                own.append(f"--answers={answers}")
            if runtime not in _THOROUGH:
                own.append(f"--held_out_seconds={_HELD_OUT_SECONDS}")
            result = _run_script(
                artifact, held_out, [*options, *own], Path(directory) / runtime
            )
            results[runtime] = result
            checks += [
                {**check, "name": f"{runtime}: {check['name']}"}
                for check in result["checks"]
            ]
    first = next(iter(results.values()))
    return {
        **first,
        "passed": all(result["passed"] for result in results.values()),
        "seconds": round(time.monotonic() - started, 3),
        "versions": {
            name: version
            for result in results.values()
            for name, version in result["versions"].items()
        },
        "checks": checks,
        "figures": {
            **first["figures"],
            "runtimes": {
                runtime: result["figures"] for runtime, result in results.items()
            },
        },
    }


def _run_script(
    artifact: Path, held_out: Path | None, options: Sequence[str], output: Path
) -> dict[str, Any]:
    # -I: neither the environment nor the current directory decides what is imported.
    process = subprocess.run(
        [
            *(sys.executable, "-I", str(SCRIPT), str(artifact)),
            *([str(held_out)] if held_out else []),
            *(f"--output={output}", *options),
        ],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if process.returncode not in (0, 1) or not output.exists():
        last_words = "\n".join(process.stderr.splitlines()[-_STDERR_LINES:])
        raise StageError(
            f"the proof ended with exit code {process.returncode}:\n{last_words}"
        )
    result: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return result
