"""`prepare` by workers: the files that one process writes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from bert_export import beam_prepare, pipeline
from bert_export.beam_tasks import Workers
from bert_export.corpus.corpus import Corpus
from bert_export.corpus.jsonl import LineRun, line_runs, read_lines, read_mentions
from bert_export.corpus.records import BadRecords
from bert_export.errors import StageError, UserError
from bert_export.features import records
from tests.test_pipeline import own_corpus, sample_config, summary

pytest.importorskip("apache_beam", reason="of the extra beam")

TWO = Workers(number=2)


def damaged_corpus(directory: Path) -> dict:
    """The sample with two lines and one mention that are bad, over two parts."""
    files = own_corpus(directory)
    path = Path(files["mentions"])
    lines = path.read_text("utf-8").splitlines()
    lines[40] = '{"text": "broken'
    lines.insert(70, "")
    lines[180:180] = [
        '{"text": "Mercury", "start": 0, "end": 99, "gold": null}',
        json.dumps(
            {"text": "a \u200d b", "start": 2, "end": 3, "gold": None}
            | {"candidates": ["mercury-god"]}
        ),
    ]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return files


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.slow
def test_workers_write_what_one_process_writes(tmp_path, monkeypatch):
    files = damaged_corpus(tmp_path / "cor pus")
    config = sample_config(
        corpus=files | {"max_bad_records": 3}, features={"num_shards": 3}
    )
    here, there = tmp_path / "here", tmp_path / "the re"
    data = pipeline.prepare(config, here)
    # Several parts a split.
    monkeypatch.setattr(beam_prepare, "PART_LINES", 50)
    by_workers = pipeline.prepare(config, there, TWO)
    assert contents(there / "records") == contents(here / "records")
    assert by_workers.fingerprint == data.fingerprint
    assert summary(there) == summary(here)
    assert summary(there)["bad_records"]["count"] == 3
    # Unchanged input.
    stamps = {p: p.stat().st_mtime_ns for p in (there / "records").iterdir()}
    pipeline.prepare(config, there, TWO)
    pipeline.prepare(config, there)
    assert stamps == {p: p.stat().st_mtime_ns for p in (there / "records").iterdir()}


def work_and_tasks(corpus: Corpus, config, directory: Path, split: str):
    work = beam_prepare.PrepareParts(
        config=config.to_json(),
        vocab=str(config.model.vocab),
        corpus_files=tuple((role, str(f)) for role, f in corpus.files.items()),
        directory=str(directory),
        fingerprints=("x",),
    )
    path = corpus.mentions_file(split)
    assert path is not None
    runs = line_runs(path, 50)
    return work, [beam_prepare.PartTask(split, n, run) for n, run in enumerate(runs)]


@pytest.mark.parametrize(("tolerated", "message"), [(0, ":41: broken"), (1, "2th bad")])
def test_too_many_bad_records_are_refused(tmp_path, tolerated, message):
    files = damaged_corpus(tmp_path / "corpus")
    config = sample_config(corpus=files | {"max_bad_records": tolerated})
    paths = {"entities": Path(files["entities"]), "train": Path(files["mentions"])}
    corpus = Corpus(config.corpus, paths, BadRecords())
    work, tasks = work_and_tasks(corpus, config, tmp_path, "train")
    for step in work.load():
        for task in reversed(tasks):
            step(task)
    bad = BadRecords(tolerated)
    with pytest.raises(UserError, match=message):
        _ = [beam_prepare.part(work, task, corpus, bad) for task in tasks]


def test_a_file_that_changes_meanwhile_is_told(tmp_path):
    files = own_corpus(tmp_path)
    config = sample_config(corpus=files)
    paths = {"entities": Path(files["entities"]), "train": Path(files["mentions"])}
    corpus = Corpus(config.corpus, paths, BadRecords())
    work, tasks = work_and_tasks(corpus, config, tmp_path, "train")
    count, encode = work.load()
    for task in tasks:
        count(task)
    lines = Path(files["mentions"]).read_bytes().splitlines(keepends=True)
    Path(files["mentions"]).write_bytes(b"".join(lines[:-30]))
    for task in tasks:
        encode(task)
    with pytest.raises(StageError, match="has it changed meanwhile"):
        _ = [beam_prepare.part(work, task, corpus, BadRecords()) for task in tasks]


def test_splits_that_fail_leave_nothing(tmp_path):
    files = damaged_corpus(tmp_path / "corpus")
    Path(files["mentions"]).write_text("\n\n", "utf-8")
    config = sample_config(corpus=files)
    with pytest.raises(UserError, match="no mentions in it"):
        pipeline.prepare(config, tmp_path / "work", TWO)
    assert list((tmp_path / "work" / "records").iterdir()) == []


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_line_runs_cover_every_line_once(tmp_path, packed, size):
    lines = [b"\xef\xbb\xbfone\n", b"\n", b"three \xe4\xb8\xad\n", b"  \n", b"5\r\n"]
    lines += [b"six\n", b"seven, without an end"]
    path = tmp_path / "lines"
    content = b"".join(lines)
    path.write_bytes(gzip.compress(content) if packed else content)
    runs = list(line_runs(path, size))
    assert [run.count for run in runs[:-1]] == [size] * (len(runs) - 1)
    assert sum(run.records for run in runs) == 5
    found = [pair for run in runs for pair in read_lines(path, run)]
    assert found == list(read_lines(path))
    assert found[0] == (1, b"one\n")
    assert len(found) == 7


def test_runs_of_an_empty_file(tmp_path):
    path = tmp_path / "empty"
    path.write_bytes(b"")
    assert list(line_runs(path, 5)) == []
    path.write_bytes(b"\n")
    assert list(line_runs(path, 5)) == [LineRun(1, 0, 1, 0)]
    # A run without mentions is no error, a file without any is one.
    assert list(read_mentions(path, BadRecords(), {}, LineRun(1, 0, 1, 0))) == []
    with pytest.raises(UserError, match="no mentions in it"):
        list(read_mentions(path, BadRecords(), {}))


def test_parts_are_tidied_up(tmp_path):
    (tmp_path / "train.part-00003.tfrecord").write_bytes(b"x")
    (tmp_path / ".train.part-00003.tfrecord.abc").write_bytes(b"x")
    (tmp_path / "dev.part-00003.json").write_bytes(b"x")
    with records.new_split(tmp_path, "train"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["dev.part-00003.json"]
