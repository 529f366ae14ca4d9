"""The stages' own promises: what is reused, what is refused and before what."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bert_export import config_file, pipeline
from bert_export.config import Config, resolve
from bert_export.errors import UserError
from tests.command_line import ROOT

DATA = ROOT / "data"


def sample_config(**groups) -> Config:
    """The sample's config, with `group={option: value}` changed."""
    values = config_file.get_config(str(ROOT / "configs" / "sample.py")).to_dict()
    for group, options in groups.items():
        values[group].update(options)
    return resolve(values)


def own_corpus(directory: Path) -> dict[str, str]:
    """A copy of the sample corpus, to be changed."""
    directory.mkdir(exist_ok=True)
    files = {}
    for name in ("entities", "mentions"):
        files[name] = str(directory / f"{name}.jsonl")
        shutil.copy(DATA / f"{name}.jsonl", files[name])
    return files


def times(workdir: Path) -> dict[str, int]:
    return {
        path.name: path.stat().st_mtime_ns for path in (workdir / "records").iterdir()
    }


def summary(workdir: Path):
    return json.loads((workdir / "summary.json").read_text("utf-8"))


def test_unchanged_input_is_not_prepared_again(tmp_path):
    workdir = tmp_path / "work"
    files = own_corpus(tmp_path / "corpus")
    first = pipeline.prepare(sample_config(corpus=files), workdir)
    before = times(workdir)
    assert set(before) == {
        f"{split}{suffix}"
        for split in ("train", "dev", "test")
        for suffix in (".json", "-00000-of-00001.tfrecord")
    }
    written = summary(workdir)
    assert written["entities"] == 46
    assert written["data_fingerprint"] == first.fingerprint
    assert written["bad_records"]["count"] == 0
    counts = [split["mentions"] for split in written["splits"].values()]
    assert written["splits"]["train"]["pairs"] == first.train.num_records
    assert min(counts) > 5

    # The same bytes elsewhere, and training options that touch no record.
    elsewhere = own_corpus(tmp_path / "elsewhere")
    again = pipeline.prepare(
        sample_config(corpus=elsewhere, train={"epochs": 1.0}), workdir
    )
    assert times(workdir) == before
    assert again.fingerprint == first.fingerprint

    # One more mention.
    with open(files["mentions"], "a", encoding="utf-8") as file:
        file.write(
            json.dumps(
                {"text": "Mercury!", "start": 0, "end": 7, "gold": "mercury-god"}
            )
            + "\n"
        )
    changed = pipeline.prepare(sample_config(corpus=files), workdir)
    assert changed.fingerprint != first.fingerprint
    assert all(times(workdir)[name] > before[name] for name in before)
    new_counts = [s["mentions"] for s in summary(workdir)["splits"].values()]
    assert sum(new_counts) == sum(counts) + 1


def test_other_candidates_are_other_records(tmp_path):
    folded = pipeline.prepare(sample_config(), tmp_path / "folded")
    exact, ngram = (
        pipeline.prepare(
            sample_config(corpus={"candidate_generation": kind}), tmp_path / kind
        )
        for kind in ("exact", "ngram")
    )
    assert len({data.fingerprint for data in (folded, exact, ngram)}) == 3
    pairs = [data.train.num_records for data in (exact, folded, ngram)]
    assert pairs == sorted(set(pairs))


def test_bad_records_stop_the_run_or_are_counted(tmp_path):
    files = own_corpus(tmp_path)
    lines = Path(files["mentions"]).read_text("utf-8").splitlines()
    lines[40] = '{"text": "broken'
    Path(files["mentions"]).write_text("\n".join(lines) + "\n", "utf-8")
    workdir = tmp_path / "work"
    with pytest.raises(UserError) as caught:
        pipeline.prepare(sample_config(corpus=files), workdir)
    assert str(caught.value).startswith(f"{files['mentions']}:41: broken JSON: ")
    assert "--max_bad_records" in str(caught.value)
    assert [path for path in workdir.rglob("*") if path.is_file()] == []

    tolerant = sample_config(corpus=files | {"max_bad_records": 1})
    data = pipeline.prepare(tolerant, workdir)
    expected = {
        "count": 1,
        "files": {files["mentions"]: {"broken JSON": 1}},
        "first": [caught.value.args[0].splitlines()[0]],
    }
    assert summary(workdir)["bad_records"] == expected
    assert data.train.num_mentions > 50
    # Reused records: what was counted stays.
    before = times(workdir)
    pipeline.prepare(tolerant, workdir)
    assert times(workdir) == before
    assert summary(workdir)["bad_records"] == expected
    # And nothing is tolerated that was tolerated once.
    with pytest.raises(UserError, match=":41: broken JSON"):
        pipeline.prepare(sample_config(corpus=files), workdir)


def test_what_does_not_fit_is_refused_before_the_work(tmp_path):
    bert = json.loads((DATA / "bert_config.json").read_text())
    (tmp_path / "short.json").write_text(json.dumps(bert | {"vocab_size": 1000}))
    (tmp_path / "few.json").write_text(
        json.dumps(bert | {"max_position_embeddings": 32})
    )
    # Permissions do not stop the superuser, but a file in the way does.
    (tmp_path / "file").write_text("")
    workdir = tmp_path / "work"
    for group, option, name, expected in (
        ("model", "bert_config", "short.json", "1355 word pieces, but the BERT config"),
        ("model", "bert_config", "few.json", "at most the BERT config's max_position"),
        ("model", "vocab", "none.txt", "there is no file"),
        ("export", "dir", "file/export", "file/export: cannot write versions here"),
    ):
        config = sample_config(**{group: {option: str(tmp_path / name)}})
        with pytest.raises(UserError, match=expected):
            pipeline.run(config, workdir)
    assert not (workdir / "records").exists()
    assert not (workdir / "model").exists()


def test_weights_that_are_not_the_configs_are_refused_before_the_work(tmp_path):
    directory = tmp_path / "hf"
    directory.mkdir()
    tensors = {
        "embeddings.word_embeddings.weight": np.zeros([1300, 64], np.float32),
        "encoder.layer.0.intermediate.dense.weight": np.zeros([128, 64], np.float32),
    }
    save_file(tensors, directory / "model.safetensors")
    model = {"pretrained": str(directory)}
    workdir = tmp_path / "work"
    message = "vocab_size is 1355, but the weights have 1300"
    for run in (pipeline.run, pipeline.prepare):
        with pytest.raises(UserError, match=message):
            run(sample_config(model=model), workdir)
    (directory / "model.safetensors").write_bytes(b"1234")
    with pytest.raises(UserError, match=r"model\.safetensors.*may be incomplete"):
        pipeline.prepare(sample_config(model=model), workdir)
    assert [path for path in workdir.rglob("*") if path.is_file()] == []
    # Whoever does not train needs none.
    pipeline.prepare(sample_config(model=model, train={"do_train": False}), workdir)


def test_no_checkpoint_to_export(tmp_path):
    for do_train in (True, False):
        with pytest.raises(UserError, match=f"no checkpoint in {tmp_path / 'model'}"):
            pipeline.choose_checkpoint(
                sample_config(train={"do_train": do_train}), tmp_path
            )
    config = sample_config(
        train={"do_train": False}, model={"init_checkpoint": str(tmp_path / "x.ckpt-1")}
    )
    with pytest.raises(UserError, match=r"x\.ckpt-1"):
        pipeline.choose_checkpoint(config, tmp_path)


def test_splits_without_mentions(tmp_path):
    no_test = sample_config(corpus={"test_fraction": 0.0})
    data = pipeline.prepare(no_test, tmp_path / "work")
    assert data.test.num_mentions == 0
    with pytest.raises(UserError, match="test split has no mention with candidates"):
        pipeline.evaluate(no_test, tmp_path / "work", data, "unused")
    no_train = dataclasses.replace(data, train=data.test)
    with pytest.raises(UserError, match="train split has no mention"):
        pipeline.train(no_test, tmp_path / "work", no_train)
