"""Files of mentions in, shards of links out: the same whoever links them."""

from __future__ import annotations

import base64
import collections
import dataclasses
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tensorflow as tf

from bert_export import batch_link, beam_tasks
from bert_export.batch_link import LinkShard, Output, Shard
from bert_export.beam_tasks import Workers
from bert_export.corpus import jsonl
from bert_export.corpus.records import Entity, Mention
from bert_export.errors import StageError, UserError
from bert_export.linking import ArtifactLinker
from bert_export.release import manifest
from tests import tiny_artifact
from tests.command_line import ROOT
from tests.test_pipeline import sample_config

pytest.importorskip("apache_beam", reason="of the extra beam")

ENTITIES = [
    Entity(f"e{n}", f"w{n % 7}", (f"w{n % 5 + 10}",), f"w{n + 20} w{n % 9 + 30}")
    for n in range(20)
]
# Of these 50 mentions number 13 has no word piece and 31 too many.
MENTIONS = [
    Mention(
        f"w{n % 8 + 40} w{n % 7} w{n % 11 + 44}", 4, 6, f"e{n % 20}" if n % 3 else None
    )
    for n in range(50)
]
MENTIONS[5] = Mention("w1 w2", 3, 5, None, ())
MENTIONS[12] = Mention("w1 \u200d w2", 3, 4, None, ("e1",))
MENTIONS[30] = Mention(" ".join(["w1"] * 15), 0, 44, None, ("e1", "e2"))
BAD_LINES = {
    4: b'{"text": "w1 w2", "start": 0}\n',
    20: b'{"text": "w1", "start": 0, "end": 2, "candidates": ["e99"]}\n',
    21: b'{"text": "w\xff1", "start": 0, "end": 2}\n',
}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    """The tiny artifact, of a config that says how long its pairs are."""
    directory = tmp_path_factory.mktemp("artifact") / "1"
    shutil.copytree(tiny_artifact.artifact(), directory)
    trained = tiny_artifact.trained()
    manifest.write(
        directory,
        manifest.build(
            directory,
            name="tiny",
            spec=trained.spec,
            checkpoint_path=trained.checkpoint,
            config=json.loads(sample_config(features={"max_seq_length": 20}).to_json()),
            metrics={"nil": {"threshold": 0.5}},
            data_fingerprint="0" * 64,
        ),
    )
    return directory


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A directory with entities, mentions.jsonl and the same as .gz and .tfrecord."""
    directory = tmp_path_factory.mktemp("in put")
    jsonl.write_entities(directory / "entities.jsonl", ENTITIES)
    jsonl.write_mentions(directory / "good.jsonl", MENTIONS)
    lines = (directory / "good.jsonl").read_bytes().splitlines(keepends=True)
    for number, line in sorted(BAD_LINES.items()):
        lines.insert(number - 1, line)
    lines.insert(30, b"\n")
    content = b"\xef\xbb\xbf" + b"".join(lines)
    (directory / "mentions.jsonl").write_bytes(content)
    (directory / "mentions.jsonl.gz").write_bytes(gzip.compress(content))
    with tf.io.TFRecordWriter(str(directory / "mentions.tfrecord")) as writer:
        for mention in MENTIONS:
            example = tf.train.Example()
            feature = example.features.feature
            feature["text"].bytes_list.value.append(mention.text.encode())
            feature["start"].int64_list.value.append(mention.start)
            feature["end"].int64_list.value.append(mention.end)
            if mention.gold:
                feature["gold"].bytes_list.value.append(mention.gold.encode())
            if mention.candidates is not None:
                values = [c.encode() for c in mention.candidates]
                feature["candidates"].bytes_list.value.extend(values)
            writer.write(example.SerializeToString())
        writer.write(b"\x07 no example")
    return directory


def run(artifact, data, output, inputs=("mentions.jsonl",), **options):
    """`batch_link` with shards of 12 records and two workers."""
    arguments = {"shard_mentions": 12, "workers": Workers(number=2), **options}
    return batch_link.batch_link(
        artifact,
        str(data / "entities.jsonl"),
        None,
        [str(data / name) for name in inputs],
        str(output),
        **arguments,
    )


def link_here(artifact, data, file, output, suffix=".jsonl") -> Output:
    """Links shards of 12 in this process, the last one first."""
    runs = list(batch_link.input_runs(str(file), 12))
    results = Output(str(output), suffix, len(runs))
    work = LinkShard(str(artifact), str(data / "entities.jsonl"), results, "f" * 64)
    (link,) = work.load()
    for number, run in reversed(list(enumerate(runs))):
        link(Shard(number, str(file), run))
    return results


def results(output: Path) -> dict[str, bytes]:
    """The files with links and rejected records, by what their names end in."""
    return {
        path.name.removeprefix(output.name): path.read_bytes()
        for path in sorted(output.parent.glob(f"{output.name}*-of-*"))
        if ".counts" not in path.name
    }


def lines_of(output: Path, kind: str = "") -> list[dict]:
    return [
        json.loads(line)
        for path in sorted(output.parent.glob(f"{output.name}{kind}-*.jsonl"))
        for line in path.read_text("utf-8").splitlines()
    ]


def test_workers_link_what_one_process_links(artifact, data, tmp_path):
    file = data / "mentions.jsonl"
    counts = run(artifact, data, tmp_path / "by workers" / "links")
    link_here(artifact, data, file, tmp_path / "here")
    found = results(tmp_path / "by workers" / "links")
    assert found == results(tmp_path / "here")
    assert [name for name in found if "rejected" not in name] == [
        f"-{n:05d}-of-00005.jsonl" for n in range(5)
    ]
    assert json.loads((tmp_path / "by workers/links.counts.json").read_text()) == counts
    nil = counts["nil"]
    assert 0 < nil < 48
    assert counts == counts | {
        "in": 53,
        "out": 48,
        "rejected": 5,
        "shards": 5,
        "shards_kept": 0,
        "reasons": {
            "missing field 'end'": 1,
            "not UTF-8": 1,
            "unknown candidate": 1,
            "unreadable mention": 2,
        },
    }
    assert not list((tmp_path / "by workers").glob(".*"))
    # Nothing is left to do, and nothing is done.
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*-of-*")}
    again = run(artifact, data, tmp_path / "by workers" / "links")
    assert again == counts | {"shards_kept": 5}
    assert stamps == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*-of-*")}


def test_links_are_those_of_link(artifact, data, tmp_path):
    link_here(artifact, data, data / "mentions.jsonl", tmp_path / "links")
    found = lines_of(tmp_path / "links")
    readable = [m for number, m in enumerate(MENTIONS) if number not in (12, 30)]
    linker = ArtifactLinker(artifact, str(data / "entities.jsonl"))
    for line, linked in zip(found, linker.link(readable), strict=True):
        expected = linked.to_dict()
        assert line["file"] == str(data / "mentions.jsonl")
        assert {k: line[k] for k in ("text", "start", "end", "gold", "prediction")} == {
            k: expected[k] for k in ("text", "start", "end", "gold", "prediction")
        }
        for one, other in zip(line["candidates"], expected["candidates"], strict=True):
            assert one["id"] == other["id"]
            assert one["score"] == pytest.approx(other["score"], abs=1e-5)
    # Line numbers are the file's, with its bad lines and its blank one.
    numbers = [line["record"] for line in found]
    rejected = lines_of(tmp_path / "links", ".rejected")
    assert sorted([*numbers, *(line["record"] for line in rejected)]) == [
        n for n in range(1, 55) if n != 31
    ]
    by_number = {line["record"]: line for line in rejected}
    assert set(by_number) == {4, 14, 20, 21, 35}
    assert by_number[4]["reason"] == "missing field 'end'"
    assert by_number[4]["raw"].encode() + b"\n" == BAD_LINES[4]
    assert base64.b64decode(by_number[21]["raw_base64"]) == BAD_LINES[21]
    assert "more than fit max_seq_length 20" in by_number[35]["reason"]


def test_gzip_and_tfrecord_hold_the_same(artifact, data, tmp_path):
    for name in ("mentions.jsonl", "mentions.jsonl.gz", "mentions.tfrecord"):
        link_here(artifact, data, data / name, tmp_path / name.replace(".", "_"))
    plain, packed, records = (
        lines_of(tmp_path / f"mentions_{kind}")
        for kind in ("jsonl", "jsonl_gz", "tfrecord")
    )
    for line in (*plain, *packed, *records):
        del line["file"]
    assert plain == packed
    for one, other in zip(plain, records, strict=True):
        assert one.pop("record") >= other.pop("record")
        for a, b in zip(one.pop("candidates"), other.pop("candidates"), strict=True):
            # Other shards make other requests.
            assert a["id"] == b["id"]
            assert a["score"] == pytest.approx(b["score"], abs=1e-5)
        assert one == other
    *_, last = lines_of(tmp_path / "mentions_tfrecord", ".rejected")
    assert last["reason"] == "not a tf.Example"
    assert last["record"] == 51


def test_links_as_tfrecords(artifact, data, tmp_path):
    file = data / "mentions.jsonl"
    link_here(artifact, data, file, tmp_path / "lines")
    link_here(artifact, data, file, tmp_path / "records", ".tfrecord")
    files = sorted(str(path) for path in tmp_path.glob("records-*.tfrecord"))
    found = list(tf.data.TFRecordDataset(files).as_numpy_iterator())
    for serialized, line in zip(found, lines_of(tmp_path / "lines"), strict=True):
        feature = tf.train.Example.FromString(serialized).features.feature
        candidates = line["candidates"]
        assert feature["record"].int64_list.value == [line["record"]]
        assert feature["text"].bytes_list.value == [line["text"].encode()]
        for name in ("gold", "prediction"):
            expected = [] if line[name] is None else [line[name].encode()]
            assert feature[name].bytes_list.value == expected
        ids = [c["id"].encode() for c in candidates]
        assert feature["candidates"].bytes_list.value == ids
        for name in ("score", "probability", "share"):
            values = [c[name] for c in candidates]
            assert list(feature[name].float_list.value) == values
        ranks = [c["prior_rank"] for c in candidates]
        assert feature["prior_rank"].int64_list.value == ranks


def mention_example(**changes) -> bytes:
    example = tf.train.Example()
    feature = example.features.feature
    values = {"text": [b"w1"], "start": [0], "end": [2]} | changes
    for name, value in values.items():
        if value is None:
            continue
        if value and isinstance(value[0], int):
            feature[name].int64_list.value.extend(value)
        else:
            feature[name].bytes_list.value.extend(value)
    return example.SerializeToString()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"text": None}, "missing field 'text'"),
        ({"text": [3]}, "mistyped field 'text': expected bytes_list, found int64_list"),
        ({"text": [b"a", b"b"]}, "mistyped field 'text': expected one value, found 2"),
        ({"start": [b"0"]}, "mistyped field 'start': expected int64_list"),
        ({"end": [9]}, "offsets outside the text"),
        ({"text": [b"\xff"]}, "not UTF-8"),
        ({"gold": [b"e99"]}, "unknown gold"),
    ],
)
def test_examples_that_are_no_mentions(changes, reason):
    serialized = mention_example(**changes)
    with pytest.raises(jsonl.BadRecordError, match=reason):
        jsonl.parse_mention(
            {"gold": None} | batch_link.parse_example(serialized), {"e1"}
        )


def test_other_jobs_results_are_not_mixed(artifact, data, tmp_path):
    output = tmp_path / "links"
    link_here(artifact, data, data / "mentions.jsonl", output)
    before = results(output)
    with pytest.raises(UserError, match=r"links-00000-of-00005\.jsonl is of another"):
        run(artifact, data, output)
    assert results(output) == before


def test_damaged_input_is_refused_before_anything_is_written(artifact, data, tmp_path):
    content = (data / "mentions.jsonl.gz").read_bytes()
    (tmp_path / "short.jsonl.gz").write_bytes(content[:-20])
    content = bytearray((data / "mentions.tfrecord").read_bytes())
    content[-40] ^= 1
    (tmp_path / "flipped.tfrecord").write_bytes(content)
    for name, message in (
        ("short.jsonl.gz", "cut short or damaged"),
        ("flipped.tfrecord", "not a TFRecord, or damaged"),
        ("none.jsonl", "there is no file"),
    ):
        with pytest.raises(UserError, match=message):
            run(artifact, data, tmp_path / "out" / "links", [tmp_path / name])
    same = str(data / "mentions.jsonl")
    with pytest.raises(UserError, match="is named 2 times"):
        run(artifact, data, tmp_path / "out" / "links", [same, same])
    assert [p for p in tmp_path.rglob("out/*") if p.is_file()] == []


def test_artifacts_are_verified(artifact, data, tmp_path):
    copy = Path(shutil.copytree(artifact, tmp_path / "1"))
    with open(copy / "saved_model.pb", "ab") as file:
        file.write(b" ")
    with pytest.raises(UserError, match=r"saved_model\.pb: not the file that the mani"):
        run(copy, data, tmp_path / "links")


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        (Workers("NoRunner"), "--runner=NoRunner: Unexpected pipeline runner"),
        (Workers("FlinkRunner", 2), "--workers is of the DirectRunner"),
        (
            Workers(beam_args=("--direct_running_mode=quickly",)),
            "--beam_args: argument --direct_running_mode: invalid choice",
        ),
    ],
)
def test_workers_that_cannot_run(workers, message):
    with pytest.raises(UserError, match=message):
        workers.check()


def test_input_that_changes_meanwhile_is_told(artifact, data, tmp_path):
    file = tmp_path / "mentions.jsonl"
    shutil.copy(data / "mentions.jsonl", file)
    runs = list(batch_link.input_runs(str(file), 12))
    shards = [Shard(n, str(file), run) for n, run in enumerate(runs)]
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-1]))
    done = link_here(artifact, data, file, tmp_path / "links")
    with pytest.raises(StageError, match=r"expected 6 records of .*has it changed"):
        batch_link.totals(done, shards, "f" * 64)


@pytest.mark.slow
def test_killed_and_damaged_runs_are_gone_on_with(artifact, data, tmp_path):
    many = tmp_path / "many.jsonl"
    many.write_bytes((data / "good.jsonl").read_bytes() * 30)
    output = tmp_path / "out" / "links"
    command = [
        *(sys.executable, "-m", "bert_export", "batch_link"),
        *(f"--artifact={artifact}", f"--entities={data / 'entities.jsonl'}"),
        *(f"--input={many}", f"--output={output}"),
        *("--shard_mentions=100", "--workers=2"),
    ]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        while len(list(output.parent.glob("links.counts-*"))) < 3:
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    # Its workers end with it.
    time.sleep(2)
    finished = {
        path: path.stat().st_mtime_ns for path in output.parent.glob("links-*-of-*")
    }
    marks = sorted(output.parent.glob("links.counts-*"))
    assert 3 <= len(marks) < 15
    time.sleep(1)
    assert len(list(output.parent.glob("links.counts-*"))) == len(marks)
    # Besides, one shard is damaged, and one was not marked as finished.
    damaged = output.parent / marks[0].name.replace(".counts", "").replace(
        "json", "jsonl"
    )
    damaged.write_bytes(damaged.read_bytes()[:-100])
    marks[1].unlink()
    (output.parent / ".links-00007-of-00015.jsonl.0.partial").write_text("half")

    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(output.with_name("links.counts.json").read_text())
    assert counts["shards_kept"] == len(marks) - 2
    # In every 50 mentions two are unreadable.
    assert (counts["in"], counts["out"], counts["rejected"]) == (1500, 1440, 60)
    seen = collections.Counter(
        line["record"] for kind in ("", ".rejected") for line in lines_of(output, kind)
    )
    assert seen == collections.Counter(range(1, 1501))
    assert not list(output.parent.glob(".*"))
    kept = marks[2].name.replace(".counts", "").replace("json", "jsonl")
    assert finished[output.parent / kept] == (output.parent / kept).stat().st_mtime_ns
    # The same as without any of that.
    runs = list(batch_link.input_runs(str(many), 100))
    here = Output(str(tmp_path / "here"), ".jsonl", len(runs))
    work = LinkShard(str(artifact), str(data / "entities.jsonl"), here, "")
    (link,) = work.load()
    for number, run in enumerate(runs):
        link(Shard(number, str(many), run))
    assert results(output) == results(tmp_path / "here")


@dataclasses.dataclass(frozen=True)
class Deadly:
    """Work that kills its worker, as a system does that is short of memory."""

    directory: str

    def load(self):
        return [self.do]

    def do(self, task: int) -> None:
        if task == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        Path(self.directory, str(task)).touch()


def test_a_worker_that_dies_ends_the_run(tmp_path):
    with pytest.raises(StageError, match="a worker process died"):
        beam_tasks.run(
            Deadly(str(tmp_path)),
            range(8),
            beam_tasks.Workers(number=2),
            "die",
            finished=lambda: 0,
        )
    assert "3" not in os.listdir(tmp_path)
