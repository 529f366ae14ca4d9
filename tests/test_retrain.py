"""What retraining refuses, tells machines, and takes for changed inputs."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bert_export.config import Config, CorpusConfig, GateConfig, ModelConfig
from bert_export.errors import UserError
from bert_export.inputs import differences, fingerprints
from bert_export.retrain import LOG_FILE, STATE_FILE
from tests.command_line import ROOT, SAMPLE, refused, run

DATA = ROOT / "data"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "retrain: --model_base=DIR is needed"),
        (("--model_base={base}", "--dry_run", "--until=train"), "leave out --until"),
        (("--model_base={base}", "--nodo_train"), "train.do_train is False"),
        (("--model_base={base}", "--export_dir=x"), "leave config.export.dir unset"),
        (("--model_base={base}", "--config.export.formats=onnx"), "a saved_model; add"),
        (
            ("--model_base={base}", "--config.gate.golden_mentions=none.jsonl"),
            "config.gate.golden_mentions: there is no file none.jsonl",
        ),
        (
            ("--model_base={base}", "--config.corpus.mentions=none.jsonl"),
            "config.corpus.mentions: there is no file none.jsonl",
        ),
        (("--model_base=/proc/models",), "/proc/models/sample_linker"),
        (("--model_base={base}", "--config.gate.confidence=1.5"), "gate.confidence"),
    ],
)
def test_refused_before_any_work(tmp_path, flags, message):
    base = tmp_path / "base"
    flags = [flag.format(base=base) for flag in flags]
    line = refused("retrain", SAMPLE, f"--workdir={tmp_path / 'work'}", *flags)
    assert message in line
    assert not (tmp_path / "work" / "runs").exists()
    assert {path.name for path in base.rglob("*") if path.is_file()} <= {".lock"}


def test_a_damaged_state_is_named(tmp_path):
    (tmp_path / STATE_FILE).write_text("{")
    line = refused(
        "retrain", SAMPLE, f"--workdir={tmp_path}", f"--model_base={tmp_path / 'base'}"
    )
    assert line.startswith(f"{tmp_path / STATE_FILE}: not JSON")


def test_machines_are_told_of_failures_too(tmp_path):
    told, metrics = tmp_path / "told.json", tmp_path / "retrain.prom"
    code = "import sys; open(sys.argv[1], 'w').write(sys.stdin.read())"
    result = run(
        "retrain",
        SAMPLE,
        f"--workdir={tmp_path / 'work'}",
        f"--model_base={tmp_path / 'base'}",
        "--config.corpus.entities=none.jsonl",
        f"--metrics_file={metrics}",
        f"--notify_command={shlex.join([sys.executable, '-c', code, str(told)])}",
    )
    assert result.returncode == 2
    summary = json.loads(told.read_text("utf-8"))
    assert summary["outcome"] == "failed"
    assert summary["exit_code"] == 2
    assert "none.jsonl" in summary["error"]
    (event,) = (tmp_path / "work" / LOG_FILE).read_text("utf-8").splitlines()
    assert json.loads(event).items() >= summary.items()
    values = {
        family.name: [(sample.labels, sample.value) for sample in family.samples]
        for family in text_string_to_metric_families(metrics.read_text("utf-8"))
    }
    label = {"model": "sample_linker"}
    assert values["bert_export_retrain_exit_code"] == [(label, 2.0)]
    # There never was a success.
    assert "bert_export_retrain_last_success_timestamp_seconds" not in values


def test_a_failing_command_is_only_warned_of(tmp_path):
    result = run(
        "retrain",
        SAMPLE,
        f"--workdir={tmp_path / 'work'}",
        f"--model_base={tmp_path / 'base'}",
        "--config.corpus.entities=none.jsonl",
        f"--metrics_file={tmp_path / 'none' / 'x.prom'}",
        "--notify_command=false",
    )
    assert result.returncode == 2
    first, second, error = result.stderr.splitlines()
    assert first.startswith("bert-export: warning: --metrics_file: cannot write")
    assert second == "bert-export: warning: --notify_command: 'false' ended with 1"
    assert "none.jsonl" in error


@pytest.fixture
def config(tmp_path) -> Config:
    for name in ("entities.jsonl", "mentions.jsonl", "bert_config.json", "vocab.txt"):
        (tmp_path / name).write_bytes((DATA / name).read_bytes())
    return Config(
        corpus=CorpusConfig(
            entities=str(tmp_path / "entities.jsonl"),
            mentions=str(tmp_path / "mentions.jsonl"),
        ),
        model=ModelConfig(
            bert_config=str(tmp_path / "bert_config.json"),
            vocab=str(tmp_path / "vocab.txt"),
        ),
    )


def test_a_changed_byte_is_a_changed_input(config, tmp_path):
    before = fingerprints(config, tmp_path, warm_start=False)
    for key, path in (
        ("corpus.entities", config.corpus.entities),
        ("corpus.mentions", config.corpus.mentions),
        ("model.bert_config", config.model.bert_config),
        ("model.vocab", config.model.vocab),
    ):
        content = Path(path).read_bytes()
        Path(path).write_bytes(content.replace(b"e", b"E", 1))
        assert differences(before, fingerprints(config, tmp_path, False)) == [key]
        Path(path).write_bytes(content)
    assert fingerprints(config, tmp_path, False) == before


def test_limits_of_the_gate_change_nothing_that_is_made(config, tmp_path):
    before = fingerprints(config, tmp_path, False)
    limits = dataclasses.replace(config, gate=GateConfig(max_drop=7.0))
    assert fingerprints(limits, tmp_path, False) == before
    seed = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=1))
    for other in (
        fingerprints(seed, tmp_path, False),
        fingerprints(config, tmp_path, warm_start=True),
    ):
        assert differences(before, other) == ["config"]


def test_weights_count_by_their_bytes(config, tmp_path):
    directory = tmp_path / "weights"
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(b"1")
    for suffix in ("index", "data-00000-of-00001"):
        (tmp_path / f"model.ckpt.{suffix}").write_bytes(b"1")
    for pretrained, file in (
        (directory, directory / "model.safetensors"),
        (tmp_path / "model.ckpt", tmp_path / "model.ckpt.index"),
    ):
        model = dataclasses.replace(config.model, pretrained=str(pretrained))
        named = dataclasses.replace(config, model=model)
        before = fingerprints(named, tmp_path, False)
        file.write_bytes(b"2")
        after = fingerprints(named, tmp_path, False)
        assert differences(before, after) == ["model.pretrained"]
    model = dataclasses.replace(config.model, pretrained=str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"model\.pretrained: there is no file"):
        fingerprints(dataclasses.replace(config, model=model), tmp_path, False)
