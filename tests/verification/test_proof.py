"""Held-out requests as recorded, and what becomes of a proof that fails."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf

from bert_export.errors import StageError, UserError
from bert_export.features.records import RecordSet
from bert_export.training.evaluation import rank_split
from bert_export.training.input_fn import chosen_mentions
from bert_export.verification import proof, prove
from tests import tiny_artifact
from tests.verification import tiny_formats


def test_recorded_requests_are_the_splits():
    held_out = tiny_formats.held_out()
    records, spec = tiny_formats.records(), tiny_formats.model().spec
    read = prove.read_held_out(held_out.path)
    chosen = chosen_mentions(records, 30)
    assert (held_out.split, held_out.mentions) == ("test", 30)
    assert held_out.pairs == len(read.rows) == records.mention_sizes[chosen].sum()
    np.testing.assert_array_equal(read.sizes, records.mention_sizes[chosen])
    np.testing.assert_array_equal(read.gold, records.gold[chosen])
    # Every pair, read from the records in another way.
    ends = np.cumsum(records.mention_sizes)
    wanted = np.concatenate(
        [np.arange(ends[m] - records.mention_sizes[m], ends[m]) for m in chosen]
    )
    stored = list(tf.data.TFRecordDataset(str(records.files[0])).as_numpy_iterator())
    for row, index in zip(read.rows, wanted, strict=True):
        values = prove.parse_example(stored[index])
        for found, name in zip(row.tokens, spec.sequence_names, strict=True):
            assert found.tolist() == values[name]
        assert row.spans.tolist() == [values[name][0] for name in spec.span_fields]


def test_recorded_answers_are_the_trained_models():
    trained, records = tiny_artifact.trained(), tiny_formats.records()
    ranking = rank_split(
        trained.estimator, trained.checkpoint, records, trained.spec, 7, 30
    )
    read = prove.read_held_out(tiny_formats.held_out().path)
    np.testing.assert_allclose(read.score, ranking.scores, atol=1e-5)
    np.testing.assert_allclose(
        read.probabilities[:, 1], ranking.probabilities, atol=1e-6
    )
    np.testing.assert_allclose(read.probabilities.sum(axis=1), 1, atol=1e-6)


def test_split_without_mentions(tmp_path):
    trained = tiny_artifact.trained()
    none = np.zeros(0, np.int64)
    records = RecordSet("dev", (), none, none, {"nil": 0, "missed": 0}, 0, "x")
    with pytest.raises(UserError, match="the dev split has no mention"):
        proof.record_held_out(
            trained.estimator,
            trained.checkpoint,
            records,
            trained.spec,
            4,
            30,
            tmp_path / "held_out.npz",
        )
    assert list(tmp_path.iterdir()) == []


def test_a_failed_proof_names_its_checks(tmp_path):
    pytest.importorskip("onnxruntime")
    artifact = tiny_formats.copy("onnx", tmp_path)
    path = artifact / prove.GOLDEN
    golden = json.loads(path.read_text())
    golden["requests"][3]["score"] += 0.25
    path.write_text(json.dumps(golden))
    with pytest.raises(StageError) as caught:
        proof.prove(artifact, tiny_formats.held_out().path, 0.5, benchmark=True)
    message = str(caught.value)
    assert message.startswith("the proof failed, ")
    assert "\n  files: assets.extra/golden_requests.json has " in message
    assert "\n  replay: 32 requests: score differs by 0." in message
    # What was measured so far is kept; what fails is not benchmarked.
    result = json.loads((artifact / "proof.json").read_text())
    assert not result["passed"]
    assert result["figures"]["top1_changed"] == 0
    assert "latency" not in result["figures"]


def test_a_good_proof(tmp_path):
    pytest.importorskip("onnxruntime")
    artifact = tiny_formats.copy("onnx", tmp_path)
    held_out = tiny_formats.held_out().path
    result = proof.prove(artifact, held_out, 0.5, benchmark=False)
    assert result == json.loads((artifact / "proof.json").read_text())
    assert result["passed"]


def test_a_proof_that_cannot_run(tmp_path):
    artifact = tiny_formats.copy("onnx", tmp_path)
    with pytest.raises(StageError, match="ended with exit code 2"):
        proof.prove(artifact, tmp_path / "missing.npz", 0.5, benchmark=False)
    assert not (artifact / "proof.json").exists()
