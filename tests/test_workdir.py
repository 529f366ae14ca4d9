"""A run's directory: which configs may go on in it, its summary, its stages."""

from __future__ import annotations

import dataclasses
import json

import pytest

from bert_export import workdir
from bert_export.config import Config, TrainConfig, read_json, resolve
from bert_export.errors import StageError, UserError

CONFIG = Config(train=TrainConfig(learning_rate=1e-3))


def changed(group, **values):
    part = dataclasses.replace(getattr(CONFIG, group), **values)
    return dataclasses.replace(CONFIG, **{group: part})


@pytest.fixture
def trained(tmp_path):
    """A workdir in which CONFIG was trained, up to a checkpoint."""
    workdir.record_config(CONFIG, tmp_path)
    workdir.record_training(CONFIG, "data", tmp_path)
    (tmp_path / "model" / "checkpoint").write_text("")
    return tmp_path


def test_the_config_is_recorded(tmp_path):
    config = resolve(
        {
            "corpus": {"entities": "e", "mentions": "m"},
            "model": {"pretrained": "p"},
            "name": "one",
        }
    )
    workdir.record_config(config, tmp_path / "new" / "work")
    assert resolve(read_json(tmp_path / "new" / "work" / "config.json")) == config


@pytest.mark.parametrize(
    ("group", "values", "key"),
    [
        ("train", {"learning_rate": 2e-3}, "train.learning_rate=0.001"),
        ("train", {"seed": 1}, "train.seed=17"),
        ("train", {"mentions_per_batch": 1}, "train.mentions_per_batch=8"),
        ("corpus", {"entities": "other"}, "corpus.entities=None"),
        (
            "features",
            {"span_fields": ()},
            "features.span_fields=['start_ps', 'end_ps']",
        ),
        ("model", {"pretrained": "bert"}, "model.pretrained=None"),
    ],
)
def test_training_on_with_another_config_is_refused(group, values, key, trained):
    before = (trained / "config.json").read_bytes()
    with pytest.raises(UserError) as caught:
        workdir.record_config(changed(group, **values), trained)
    assert f"holds a model trained with {key}, and now it is " in str(caught.value)
    assert f"remove {trained / 'model'} to train anew" in str(caught.value)
    assert (trained / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("group", "values"),
    [
        ("train", {"epochs": 9.0}),
        ("train", {"max_steps": 9}),
        ("train", {"use_tpu": True}),
        ("corpus", {"max_bad_records": 3}),
        ("eval", {"split": "dev"}),
        ("export", {"dir": "elsewhere"}),
    ],
)
def test_what_is_not_learnt_may_change(group, values, trained):
    workdir.record_config(changed(group, **values), trained)


def test_any_config_may_follow_before_the_first_checkpoint(trained):
    (trained / "model" / "checkpoint").unlink()
    workdir.record_config(changed("train", seed=1), trained)


def test_a_run_without_training_is_free_and_leaves_the_training_alone(trained):
    other = changed("train", do_train=False, seed=1)
    workdir.record_config(other, trained)
    assert json.loads((trained / "config.json").read_text())["train"]["seed"] == 1
    # The model is still one of CONFIG.
    with pytest.raises(UserError, match=r"train\.seed=17, and now it is 1"):
        workdir.record_config(changed("train", seed=1), trained)
    workdir.record_config(CONFIG, trained)


def test_training_on_with_other_data_is_refused(trained):
    workdir.record_training(CONFIG, "data", trained)
    with pytest.raises(UserError, match="trained on other data: the corpus has"):
        workdir.record_training(CONFIG, "other data", trained)


def test_summary_keeps_what_other_stages_wrote(tmp_path):
    assert workdir.read_summary(tmp_path) == {}
    workdir.summarize(tmp_path, a=1, b={"c": [2]})
    workdir.summarize(tmp_path, a=3, d="é")
    expected = {"a": 3, "b": {"c": [2]}, "d": "é"}
    assert workdir.read_summary(tmp_path) == expected
    assert json.loads((tmp_path / "summary.json").read_text("utf-8")) == expected


def test_stage_names_what_failed(tmp_path):
    with pytest.raises(StageError) as caught, workdir.stage("train", tmp_path):
        raise ValueError("first line\nsecond line")
    log = tmp_path / "error.log"
    assert str(caught.value) == (
        f"stage train failed: ValueError: first line (traceback in {log})"
    )
    assert "Traceback" in log.read_text()
    assert "test_workdir.py" in log.read_text()


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (UserError("change this"), UserError, "change this"),
        (StageError("2 checks failed"), StageError, "stage a failed: 2 checks failed"),
        (
            OSError(28, "No space left on device", "file"),
            StageError,
            "stage a failed: [Errno 28] No space left on device: 'file'",
        ),
        (ValueError(), StageError, "stage a failed: ValueError: ValueError"),
    ],
)
def test_stage_keeps_foreseen_errors_short(error, kind, message, tmp_path):
    with pytest.raises(kind) as caught, workdir.stage("a", tmp_path):
        raise error
    assert str(caught.value).startswith(message)
    assert (tmp_path / "error.log").exists() == isinstance(error, ValueError)


def test_stage_tells_how_long_it_took(tmp_path, capsys):
    with workdir.stage("prepare", tmp_path):
        pass
    first, last = capsys.readouterr().err.splitlines()
    assert first == "== prepare"
    assert last.startswith("== prepare done in 0.")
