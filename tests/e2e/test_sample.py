"""The whole program on the sample corpus, as a person runs it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from bert_export import pipeline
from bert_export.config import read_json, resolve
from bert_export.errors import StageError, UserError
from bert_export.export import publish
from bert_export.features.records import RecordSet
from bert_export.features.spec import FeatureSpec
from bert_export.training import checkpoints
from bert_export.training import estimator as training
from bert_export.training.evaluation import rank_split
from tests.command_line import ROOT, done, run

CHECKPOINT = re.compile(r"^checkpoint: (\S+) \(step (\d+)\)$", re.MULTILINE)
PUBLISHED = re.compile(r"^published: (\S+)$", re.MULTILINE)


def read(path: Path):
    return json.loads(path.read_text("utf-8"))


def config_of(workdir: Path):
    return resolve(read_json(workdir / "config.json"))


def files(directory: Path) -> dict[str, int]:
    return {
        str(path.relative_to(directory)): path.stat().st_mtime_ns
        for path in directory.rglob("*")
        if path.is_file()
    }


def other_than(checkpoint: str, workdir: Path) -> str:
    """One of the training's other checkpoints."""
    prefixes = {path.with_suffix("") for path in (workdir / "model").glob("*.index")}
    return str(
        next(prefix for prefix in prefixes if prefix.name != Path(checkpoint).name)
    )


def test_what_a_run_leaves_behind_fits_together(sample):
    workdir = sample.workdir
    config, summary = read(workdir / "config.json"), read(workdir / "summary.json")
    evaluation = read(workdir / "evaluation.json")
    manifest = read(sample.version / "manifest.json")

    assert config["name"] == manifest["name"] == "sample_linker"
    assert manifest["config"] == config
    assert manifest["metrics"] == evaluation["metrics"]
    assert summary["link_accuracy"] == evaluation["metrics"]["link_accuracy"]
    assert 0 <= summary["link_accuracy"] <= 1
    assert summary["artifacts"] == {"saved_model": str(sample.version)}
    assert summary["version"] == int(sample.version.name)
    assert summary["not_published"] == {}
    assert summary["bad_records"]["count"] == 0
    fingerprints = {
        found["data_fingerprint"] for found in (summary, evaluation, manifest)
    }
    assert len(fingerprints) == 1

    splits = summary["splits"]
    assert evaluation["metrics"]["split"] == "test"
    assert evaluation["metrics"]["pairs"] == splits["test"]["pairs"]
    without = sum(splits["test"]["mentions_without_candidates"].values())
    assert evaluation["metrics"]["mentions"] == splits["test"]["mentions"] + without

    # The checkpoint that was chosen is the one that was measured and exported.
    prefix, step = CHECKPOINT.search(sample.stdout).groups()
    assert prefix == evaluation["checkpoint"]
    assert manifest["checkpoint"]["path"] == Path(prefix).name
    assert manifest["checkpoint"]["global_step"] == int(step)
    best = training.best_checkpoint(workdir / "model")
    assert prefix == best
    points = training.read_curve(workdir / "model")
    assert max(p["link_accuracy"] for p in points[1:]) == next(
        p["link_accuracy"] for p in points if p["step"] == int(step)
    )

    smoke_test = read(sample.version / "smoke_test.json")
    assert smoke_test["passed"] is True
    assert {check["result"] for check in smoke_test["checks"]} == {"passed"}
    on_disk = set(files(sample.version)) - {
        "manifest.json",
        "smoke_test.json",
        "proof.json",
    }
    assert set(manifest["files"]) == on_disk
    assert "assets.extra/tf_serving_warmup_requests" in on_disk


def test_what_a_run_prints(sample):
    assert PUBLISHED.search(sample.stdout)[1] == str(sample.version)
    for stage in ("prepare", "train", "evaluate", "export"):
        assert f"== {stage}\n" in sample.stderr
        assert re.search(rf"== {stage} done in [\d.]+ s", sample.stderr)
    assert "all test mentions" in sample.stdout
    assert "Traceback" not in sample.stderr
    assert "WARNING" not in sample.stderr
    assert not list(sample.workdir.rglob("*.partial"))
    assert not list((sample.workdir / "export").glob(".*"))


def test_the_version_answers_as_the_trained_model(sample):
    """Every test pair, through both signatures, against estimator.predict."""
    config = config_of(sample.workdir)
    spec = FeatureSpec.from_config(config.features)
    records = RecordSet.load(sample.workdir / "records", "test")
    checkpoint = read(sample.workdir / "evaluation.json")["checkpoint"]
    estimator = training.create_estimator(
        config, pipeline._model_params(config), sample.workdir / "model"
    )
    expected = rank_split(estimator, checkpoint, records, spec, 5)

    examples = list(
        tf.data.TFRecordDataset([str(f) for f in records.files]).as_numpy_iterator()
    )
    assert len(examples) == records.num_records > 30
    model = tf.saved_model.load(str(sample.version))
    answers = model.signatures["serving_default"](examples=tf.constant(examples))
    dense = spec.parse(tf.constant(examples), spec.serving_parsing_spec())
    dense.pop(spec.label_ids)
    for found in (answers, model.signatures["tensors"](**dense)):
        np.testing.assert_allclose(found["score"], expected.scores, atol=1e-5)
        np.testing.assert_allclose(
            found["probabilities"][:, 1], expected.probabilities, atol=1e-5
        )


def test_a_second_run_uses_what_is_there(sample, copied):
    records, model = files(copied / "records"), files(copied / "model")
    # Without --config: the recorded one.
    result = done("run", f"--workdir={copied}")
    assert "trained already: " in result.stdout
    assert files(copied / "records") == records
    model["trained_with.json"] = files(copied / "model")["trained_with.json"]
    assert files(copied / "model") == model
    old, new = map(str, publish.versions(copied / "export"))
    assert old == sample.version.name
    # The same config, the same numbers.
    first, second = (read(d / "config.json") for d in (sample.workdir, copied))
    assert second == first
    first, second = (read(d / "evaluation.json") for d in (sample.workdir, copied))
    for figure in ("link_accuracy", "mrr", "roc_auc", "pairs"):
        assert second["metrics"][figure] == pytest.approx(first["metrics"][figure])
    manifests = [
        read(copied / "export" / name / "manifest.json") for name in (old, new)
    ]
    assert manifests[0]["data_fingerprint"] == manifests[1]["data_fingerprint"]


def test_nodo_train_takes_the_newest_checkpoint(copied):
    # Whichever was the best, now it is an earlier one.
    early = str(copied / "model" / "model.ckpt-100")
    checkpoints.copy_checkpoint(early, copied / "model" / "best")
    newest = training.newest_checkpoint(copied / "model")
    model = files(copied / "model")
    result = done("evaluate", f"--workdir={copied}", "--nodo_train")
    prefix, step = CHECKPOINT.search(result.stdout).groups()
    assert prefix == newest
    assert int(step) == training.global_step(newest) > 100
    chosen = pipeline.choose_checkpoint(config_of(copied), copied)
    assert training.global_step(chosen) == 100
    evaluation = read(copied / "evaluation.json")
    assert evaluation["checkpoint"] == newest
    assert f"{100 * evaluation['metrics']['link_accuracy']:.1f}" in result.stdout
    assert files(copied / "model") == model
    # A mere look at another checkpoint is not the workdir's run.
    assert read(copied / "config.json")["train"]["do_train"] is True


def test_export_of_a_checkpoint_by_name(sample, tmp_path, capsys):
    best = training.best_checkpoint(sample.workdir / "model")
    values = read(sample.workdir / "config.json")
    values["train"]["do_train"] = False
    values["model"]["init_checkpoint"] = best
    values["export"]["dir"] = str(tmp_path / "somewhere else")
    config, workdir = resolve(values), tmp_path / "work"
    version = pipeline.run(config, workdir)["saved_model"]
    assert CHECKPOINT.search(capsys.readouterr().out)[1] == best
    assert version.parent == tmp_path / "somewhere else"
    assert not (workdir / "model").exists()
    first, second = (
        read(path / "assets.extra" / "golden_requests.json")["requests"]
        for path in (sample.version, version)
    )
    for one, other in zip(first, second, strict=True):
        assert other["example"] == one["example"]
        assert other["score"] == pytest.approx(one["score"], abs=1e-5)


def test_metrics_of_another_checkpoint_are_not_exported(sample, copied):
    config = config_of(sample.workdir)
    data = pipeline.prepare(config, copied)
    checkpoint = pipeline.choose_checkpoint(config, copied)
    # Of the original's path, hence not of this checkpoint.
    assert pipeline._recorded_metrics(config, copied, data, checkpoint) is None
    metrics = pipeline.evaluate(config, copied, data, checkpoint)
    assert pipeline._recorded_metrics(config, copied, data, checkpoint) == metrics
    # A model trained anew, whose checkpoint has the name of the old one.
    shutil.copy(f"{other_than(checkpoint, copied)}.index", f"{checkpoint}.index")
    assert pipeline._recorded_metrics(config, copied, data, checkpoint) is None


def test_checkpoint_of_another_architecture(sample, tmp_path):
    bert = json.loads((ROOT / "data" / "bert_config.json").read_text())
    other = tmp_path / "bert_config.json"
    best = training.best_checkpoint(sample.workdir / "model")
    values = read(sample.workdir / "config.json")
    values["model"] |= {"bert_config": str(other), "init_checkpoint": best}
    for do_train in (False, True):
        values["train"]["do_train"] = do_train
        config = resolve(values)
        # A wider feed-forward layer, then one layer more.
        for change, named, size in (
            (
                {"intermediate_size": 256},
                r"layer_0/intermediate/dense/kernel \(expected \[64, 256\], "
                r"found \[64, 128\]\)",
                "intermediate_size is 256, but the weights have 128",
            ),
            (
                {"num_hidden_layers": 3},
                "lacks bert/encoder/layer_2/attention/output",
                "num_hidden_layers is 3, but the weights have 2",
            ),
        ):
            other.write_text(json.dumps(bert | change))
            if do_train:
                with pytest.raises(UserError, match=size):
                    pipeline.prepare(config, tmp_path / "work")
            else:
                with pytest.raises(UserError, match=named):
                    pipeline.choose_checkpoint(config, tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_smoke_test_names_what_was_changed_in_the_newest_version(sample, copied):
    version = copied / "export" / sample.version.name
    vocab = version / "assets.extra" / "vocab.txt"
    vocab.write_text(vocab.read_text("utf-8").replace("planet", "planets"), "utf-8")
    result = run("smoke_test", f"--workdir={copied}")
    assert result.returncode == 1
    assert f"bert-export: {version}: the smoke test failed, 1 of " in result.stderr
    assert "assets.extra/vocab.txt" in result.stderr
    assert read(version / "smoke_test.json")["passed"] is False


def test_an_export_that_fails_its_smoke_test_publishes_nothing(
    sample, copied, monkeypatch
):
    config = config_of(sample.workdir)
    data = pipeline.prepare(config, copied)
    checkpoint = pipeline.choose_checkpoint(config, copied)
    before = files(copied / "export")
    # The model that answers and the model that is written are not the same one.
    record_golden = pipeline.requests.record_golden

    def of_other_weights(estimator, checkpoint_path, examples, spec):
        other = other_than(checkpoint_path, copied)
        return record_golden(estimator, other, examples, spec)

    monkeypatch.setattr(pipeline.requests, "record_golden", of_other_weights)
    with pytest.raises(
        StageError, match=r"stage export failed: .*checks failed"
    ) as error:
        pipeline.export(config, copied, data, checkpoint)
    assert "replay:serving_default" in str(error.value)
    after = files(copied / "export")
    new = {Path(name).parts[0] for name in set(after) - set(before)}
    # The report says why.
    assert new == {"failed_smoke_test.json", "reports"}


def test_tpu_estimator_runs_through_export(sample, tmp_path, capsys):
    values = read(sample.workdir / "config.json")
    values["train"] |= {"use_tpu": True, "max_steps": 5}
    values["eval"]["max_mentions"] = 8
    version = pipeline.run(resolve(values), tmp_path)["saved_model"]
    assert CHECKPOINT.search(capsys.readouterr().out)[2] == "5"
    manifest = read(version / "manifest.json")
    assert manifest["config"]["train"]["use_tpu"] is True
    pairs = read(tmp_path / "summary.json")["splits"]["test"]["pairs"]
    assert 8 <= manifest["metrics"]["pairs"] < pairs
    assert read(version / "smoke_test.json")["passed"] is True
