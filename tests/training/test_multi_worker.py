"""Who is which worker, by TF_CONFIG; training together is tested in tests/e2e."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from bert_export.config import TrainConfig
from bert_export.errors import UserError
from bert_export.features.spec import MENTION_ID, FeatureSpec
from bert_export.training import multi_worker
from bert_export.training.input_fn import train_input_fn
from tests.training import tiny_task

TWO = {"worker": ["127.0.0.1:1", "127.0.0.1:2"]}


@pytest.fixture
def worker(monkeypatch):
    """A function that gives the process's worker for a TF_CONFIG."""

    def given(value):
        monkeypatch.setenv("TF_CONFIG", value)
        multi_worker.this_worker.cache_clear()
        return multi_worker.this_worker()

    yield given
    multi_worker.this_worker.cache_clear()


@pytest.mark.parametrize(
    "value", ["", "{}", json.dumps({"cluster": {"worker": ["127.0.0.1:1"]}})]
)
def test_a_process_alone_is_the_chief(worker, value):
    assert worker(value) is None
    assert multi_worker.is_chief()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "TF_CONFIG is not JSON"),
        ("[1]", "expected a JSON object"),
        ('{"cluster": {"worker": 7}}', "expected a cluster, a list of addresses"),
        (
            json.dumps({"cluster": {**TWO, "ps": ["127.0.0.1:3"]}}),
            "expected the jobs chief and worker, found ps",
        ),
        (
            json.dumps({"cluster": {"chief": TWO["worker"]}}),
            "expected one chief",
        ),
        (json.dumps({"cluster": TWO}), "expected a task of the cluster"),
        (
            json.dumps({"cluster": TWO, "task": {"type": "worker", "index": 2}}),
            "expected a task of the cluster",
        ),
        (
            json.dumps({"cluster": TWO, "task": {"type": "chief", "index": 0}}),
            "expected a task of the cluster",
        ),
    ],
)
def test_what_is_no_tf_config_is_refused(worker, value, message):
    with pytest.raises(UserError, match=message):
        worker(value)


def test_the_chief_is_counted_first(worker):
    cluster = {"worker": ["127.0.0.1:0", "127.0.0.1:0"], "chief": ["127.0.0.1:0"]}
    task = {"type": "worker", "index": 1}
    found = worker(json.dumps({"cluster": cluster, "task": task}))
    assert (found.index, found.count) == (2, 3)
    assert not multi_worker.is_chief()
    with pytest.raises(UserError, match="mentions_per_batch: expected at least 3"):
        found.check(TrainConfig(mentions_per_batch=2))
    with pytest.raises(UserError, match="use_tpu"):
        found.check(TrainConfig(use_tpu=True))


@pytest.mark.parametrize("num_workers", [2, 3])
def test_the_workers_parts_make_the_batch(tmp_path, num_workers):
    records = tiny_task.write(tmp_path, "train", 50)
    spec = FeatureSpec.from_config(tiny_task.FEATURES)

    def batches(*part):
        input_fn = train_input_fn(records, spec, 8, 30, 17, 2, *part)
        return [
            labels[MENTION_ID]
            for _, labels in itertools.islice(input_fn().as_numpy_iterator(), 12)
        ]

    parts = [batches(worker, num_workers) for worker in range(num_workers)]
    for whole, *together in zip(batches(), *parts, strict=True):
        np.testing.assert_array_equal(np.concatenate(together), whole)
        assert len({*together[0]} & {*together[1]}) == 0
