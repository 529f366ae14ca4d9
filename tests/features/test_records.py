from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from bert_export.config import FeaturesConfig
from bert_export.corpus.records import BadRecords, Mention
from bert_export.errors import UserError
from bert_export.features import records
from bert_export.features.pairs import PairEncoder
from bert_export.features.records import RecordSet, spread_examples, write_split
from bert_export.features.spec import MENTION_ID
from bert_export.features.tokenizer import WordPiece

ENTITIES = {
    "q1": "bank: a place for money",
    "q2": "bank: a place on the river",
    "q3": "北京: a place",
    "q4": "",
}
MENTIONS = [
    Mention("he sat on the bank", 14, 18, "q2", ("q1", "q2")),
    Mention("the bank of 北京", 12, 14, "q3", ("q3",)),
    Mention("money", 0, 5, None, ()),
    Mention("the bank", 4, 8, None, ("q1", "q2", "q4")),
    Mention("river", 0, 5, "q2", ()),
    Mention("a bank", 2, 6, "q4", ("q2", "q1")),
]


@pytest.fixture(scope="module")
def encoder(vocab):
    return PairEncoder(WordPiece(vocab), FeaturesConfig(max_seq_length=24))


def write(
    directory: Path, encoder: PairEncoder, mentions: Any = MENTIONS, **options: Any
) -> RecordSet:
    arguments: dict[str, Any] = {
        "split": "train",
        "fingerprint": "abc",
        "num_shards": 2,
        "bad": BadRecords(),
    }
    return write_split(mentions, ENTITIES, encoder, directory, **arguments | options)


def read(found: RecordSet) -> list[dict[str, list[int]]]:
    rows = []
    for serialized in tf.data.TFRecordDataset([str(f) for f in found.files]):
        feature = tf.train.Example.FromString(serialized.numpy()).features.feature
        rows.append({k: list(v.int64_list.value) for k, v in feature.items()})
    return rows


def untouchable() -> Iterator[Mention]:
    raise AssertionError("the mentions were read again")
    yield


def test_round_trip(tmp_path, encoder, vocab):
    found = write(tmp_path / "new" / "records", encoder)
    assert [file.name for file in found.files] == [
        "train-00000-of-00002.tfrecord",
        "train-00001-of-00002.tfrecord",
    ]
    assert found.mention_sizes.dtype == found.gold.dtype == np.int64
    np.testing.assert_array_equal(found.mention_sizes, [2, 1, 3, 2])
    np.testing.assert_array_equal(found.gold, [1, 0, -1, -2])
    assert (found.num_mentions, found.num_records) == (4, 8)
    assert found.no_candidates == {"nil": 1, "missed": 1}
    assert found.bad_mentions == 0

    rows = read(found)
    assert [row[MENTION_ID] for row in rows] == [[n] for n in (0, 0, 1, 2, 2, 2, 3, 3)]
    assert [row["label_ids"] for row in rows] == [[n] for n in (0, 1, 1, 0, 0, 0, 0, 0)]
    with_candidates = [mention for mention in MENTIONS if mention.candidates]
    pairs = [(m, c) for m in with_candidates for c in m.candidates or ()]
    encoded = encoder(
        tf.constant([mention.text for mention, _ in pairs]),
        tf.constant([mention.start for mention, _ in pairs]),
        tf.constant([mention.end for mention, _ in pairs]),
        tf.constant([ENTITIES[candidate] for _, candidate in pairs]),
    )
    assert [row["input_ids"] for row in rows] == encoded.input_ids.to_list()
    assert [row["segment_ids"] for row in rows] == encoded.segment_ids.to_list()
    assert [row["start_ps"] for row in rows] == encoded.start_ps.numpy()[
        :, None
    ].tolist()
    assert [row["end_ps"] for row in rows] == encoded.end_ps.numpy()[:, None].tolist()
    for row in rows:
        assert row["input_mask"] == [1] * len(row["input_ids"])
        assert len(row) == 7
    assert " ".join(vocab[index] for index in rows[0]["input_ids"]) == (
        "[CLS] he sat on the bank [SEP] bank : a place for money [SEP]"
    )


def test_records_parse_by_mention(tmp_path, encoder):
    found = write(tmp_path, encoder, num_shards=3)
    spec = encoder.spec
    files = [str(file) for file in found.files]
    mentions = tf.data.TFRecordDataset(files).batch(64).rebatch(found.mention_sizes)
    numbers = []
    for mention in mentions:
        features = spec.check(spec.parse(mention, spec.training_parsing_spec()))
        assert len(set(features[MENTION_ID].numpy())) == 1
        numbers.append(int(features[MENTION_ID][0]))
    assert numbers == [0, 1, 2, 3]


def test_names_are_the_specs(tmp_path, vocab):
    config = FeaturesConfig(input_ids="tokens", span_fields=(), label_ids="match")
    found = write(tmp_path, PairEncoder(WordPiece(vocab, config), config))
    assert set(read(found)[0]) == {
        *("tokens", "input_mask", "segment_ids", "match", MENTION_ID)
    }


@pytest.mark.parametrize("num_shards", [1, 2, 3, 7])
def test_shards_hold_whole_mentions(tmp_path, encoder, num_shards):
    found = write(tmp_path, encoder, num_shards=num_shards)
    assert len(found.files) == num_shards
    shards = json.loads((tmp_path / "train.json").read_text())["shards"]
    numbers = []
    for file, shard in zip(found.files, shards):
        own = [
            tf.train.Example.FromString(serialized.numpy())
            .features.feature[MENTION_ID]
            .int64_list.value[0]
            for serialized in tf.data.TFRecordDataset(str(file))
        ]
        assert len(own) == shard["records"]
        assert file.stat().st_size == shard["bytes"]
        numbers.append(own)
    assert list(itertools.chain(*numbers)) == [0, 0, 1, 2, 2, 2, 3, 3]
    flat = [set(own) for own in numbers if own]
    assert sum(len(own) for own in flat) == 4


def test_batches_do_not_show(tmp_path, encoder, monkeypatch):
    whole = write(tmp_path / "whole", encoder, MENTIONS * 5)
    monkeypatch.setattr(records, "_BATCH_PAIRS", 3)
    batched = write(tmp_path / "batched", encoder, MENTIONS * 5)
    for one, other in zip(whole.files, batched.files):
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("mentions", [[], [MENTIONS[2]]])
def test_nothing_to_write(tmp_path, encoder, mentions):
    found = write(tmp_path, encoder, mentions)
    assert (found.num_mentions, found.num_records) == (0, 0)
    assert read(found) == []
    assert RecordSet.load(tmp_path, "train").mention_sizes.dtype == np.int64


def test_spread_examples(tmp_path, encoder):
    found = write(tmp_path, encoder, num_shards=4)
    everything = spread_examples(found, 100)
    assert len(everything) == 8
    assert spread_examples(found, 3) == everything[0:6:2]


def test_same_fingerprint_is_not_written_again(tmp_path, encoder):
    first = write(tmp_path, encoder)
    stamps = [file.stat().st_mtime_ns for file in first.files]
    again = write(tmp_path, encoder, untouchable())
    assert again.files == first.files
    assert [file.stat().st_mtime_ns for file in again.files] == stamps
    np.testing.assert_array_equal(again.gold, first.gold)


def test_other_fingerprint_is_written_again(tmp_path, encoder):
    write(tmp_path, encoder, split="dev")
    write(tmp_path, encoder, num_shards=4)
    found = write(tmp_path, encoder, MENTIONS[:1], fingerprint="other", num_shards=1)
    assert found.num_mentions == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "dev-00000-of-00002.tfrecord",
        "dev-00001-of-00002.tfrecord",
        "dev.json",
        "train-00000-of-00001.tfrecord",
        "train.json",
    ]


@pytest.mark.parametrize("damage", ["truncated", "removed", "sidecar"])
def test_damage_is_reported_and_mended(tmp_path, encoder, damage):
    found = write(tmp_path, encoder)
    good = [file.read_bytes() for file in found.files]
    shard = found.files[1]
    if damage == "truncated":
        shard.write_bytes(good[1][:-9])
        message = (
            rf"{shard.name}: found {len(good[1]) - 9} bytes, expected {len(good[1])}"
        )
    elif damage == "removed":
        shard.unlink()
        message = rf"{shard.name}: not found, expected {len(good[1])} bytes"
    else:
        sidecar = tmp_path / "train.json"
        sidecar.write_text(sidecar.read_text()[:-9])
        message = r"train\.json: not readable"
    with pytest.raises(UserError, match=message):
        RecordSet.load(tmp_path, "train")
    mended = write(tmp_path, encoder)
    assert [file.read_bytes() for file in mended.files] == good


@pytest.mark.parametrize(
    "change",
    [
        {"mention_sizes": [2, 1, 3]},
        {"records": 9},
        {"gold": [1, 0]},
        {"shards": [{"file": "train-00000-of-00002.tfrecord"}]},
        {"no_candidates": None},
        {"fingerprint": ...},
    ],
)
def test_sidecars_of_other_kinds(tmp_path, encoder, change):
    write(tmp_path, encoder)
    sidecar = tmp_path / "train.json"
    content = json.loads(sidecar.read_text()) | change
    content = {key: value for key, value in content.items() if value is not ...}
    sidecar.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"train\.json: .*prepare the corpus again"):
        RecordSet.load(tmp_path, "train")


def test_not_prepared(tmp_path):
    with pytest.raises(UserError, match="the split 'dev' is not prepared"):
        RecordSet.load(tmp_path, "dev")


LONG = Mention("a b c d e f g h i j k l m", 0, 25, "q1", ("q1", "q2"))
TRACELESS = Mention("a \u200d bank", 2, 3, "q1", ("q1",))


def test_bad_mentions_are_left_out(tmp_path, encoder):
    bad = BadRecords(max_bad_records=2)
    mentions = [MENTIONS[0], LONG, MENTIONS[2], TRACELESS, MENTIONS[3]]
    found = write(tmp_path, encoder, mentions, bad=bad)
    np.testing.assert_array_equal(found.mention_sizes, [2, 3])
    assert [row[MENTION_ID] for row in read(found)] == [[0], [0], [1], [1], [1]]
    assert found.bad_mentions == bad.count == 2
    first, second = bad.messages
    assert first.startswith("mentions of train:2: mention longer than the window: ")
    assert "has 13 word pieces" in first
    assert second.startswith("mentions of train:4: mention without a word piece: ")


def test_only_bad_mentions(tmp_path, encoder):
    found = write(tmp_path, encoder, [LONG], bad=BadRecords(1))
    assert (found.num_mentions, found.bad_mentions) == (0, 1)


def test_too_many_bad_mentions(tmp_path, encoder):
    with pytest.raises(UserError, match="mention longer than the window"):
        write(tmp_path, encoder, [MENTIONS[0], LONG])
    assert list(tmp_path.iterdir()) == []


def test_failing_mentions_leave_nothing(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr(records, "_BATCH_PAIRS", 2)

    def mentions() -> Iterator[Mention]:
        yield from MENTIONS
        raise UserError("mentions.jsonl:7: broken")

    write(tmp_path, encoder, fingerprint="old")
    with pytest.raises(UserError, match=r"mentions\.jsonl:7: broken"):
        write(tmp_path, encoder, mentions())
    assert list(tmp_path.iterdir()) == []


def test_killed_run_leaves_no_sidecar_and_the_next_one_tidies(tmp_path, encoder, vocab):
    write(tmp_path, encoder, fingerprint="old")
    program = f"""
        import os, signal
        from bert_export.config import FeaturesConfig
        from bert_export.corpus.records import BadRecords, Mention
        from bert_export.features import pairs, records, tokenizer

        records._BATCH_PAIRS = 2

        def mentions():
            for _ in range(4):
                yield Mention("a bank", 2, 6, "q1", ("q1", "q2"))
            os.kill(os.getpid(), signal.SIGKILL)

        records.write_split(
            mentions(),
            {ENTITIES!r},
            pairs.PairEncoder(
                tokenizer.WordPiece({vocab!r}), FeaturesConfig(max_seq_length=24)
            ),
            {str(tmp_path)!r},
            "train",
            "new",
            2,
            BadRecords(),
        )
    """
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=Path(__file__).resolve().parents[2],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert [file.name for file in tmp_path.iterdir()] == ["train.partial"]
    # Left by a run that was killed while it cut the shards.
    (tmp_path / "train-00000-of-00009.tfrecord.partial").write_bytes(b"x")
    (tmp_path / "train-00001-of-00009.tfrecord").write_bytes(b"x")
    (tmp_path / ".train.json.123.partial").write_bytes(b"x")
    found = write(tmp_path, encoder, fingerprint="new")
    assert {file.name for file in tmp_path.iterdir()} == {
        *(file.name for file in found.files),
        "train.json",
    }
