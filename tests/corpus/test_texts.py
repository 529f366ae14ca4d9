from __future__ import annotations

import gzip
import json

import pytest

from bert_export.config import CorpusConfig
from bert_export.corpus import texts
from bert_export.corpus.corpus import load_corpus
from bert_export.corpus.records import BadRecords
from bert_export.corpus.splits import split_of
from bert_export.errors import UserError

ENTITY = {"id": "a", "name": "北京", "aliases": ["Peking"], "description": "首都。"}
MENTION = {"text": "我爱北京", "start": 2, "end": 4, "gold": "a"}


def lines(*records):
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)


def read(*paths, bad=None):
    return list(texts.file_texts(map(str, paths), bad or BadRecords()))


def test_entities_and_mentions_of_json_lines(tmp_path):
    path = tmp_path / "both.jsonl"
    path.write_text(lines(ENTITY, MENTION), "utf-8")
    assert read(path) == ["北京", "Peking", "首都。", "我爱北京"]


def test_gzip_and_plain_text_with_a_byte_order_mark(tmp_path):
    packed = tmp_path / "mentions.jsonl.gz"
    packed.write_bytes(gzip.compress(lines(MENTION).encode()))
    plain = tmp_path / "plain.txt"
    plain.write_bytes("\ufeffสวัสดี\r\n\n  ครับ  ".encode())
    assert read(packed, plain) == ["我爱北京", "สวัสดี", "ครับ"]


def test_each_text_counts_once(tmp_path):
    path = tmp_path / "mentions.jsonl"
    path.write_text(lines(MENTION, MENTION, {**MENTION, "gold": None}), "utf-8")
    assert read(path, path) == ["我爱北京"]


def test_a_text_of_many_lines_is_cut_at_them(tmp_path):
    path = tmp_path / "mentions.jsonl"
    path.write_text(lines({**MENTION, "text": "我爱北京\n\n因为…\r\n"}), "utf-8")
    assert read(path) == ["我爱北京", "因为…"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "broken JSON"),
        ("[1]", "not a JSON object"),
        ('{"id": "a"}', "neither 'text'"),
        ('{"text": "a", "start": 0}', "missing field 'end'"),
        ('{"name": "a", "id": "b", "description": "c"}', "missing field 'aliases'"),
    ],
)
def test_bad_lines_are_named_and_may_be_left_out(tmp_path, line, reason):
    path = tmp_path / "records.jsonl"
    path.write_text(lines(MENTION) + line + "\n", "utf-8")
    with pytest.raises(UserError, match=r"records\.jsonl:2: ") as refusal:
        read(path)
    assert reason in str(refusal.value)
    assert read(path, bad=BadRecords(1)) == ["我爱北京"]


def test_text_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("schön\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.txt:1: not UTF-8"):
        read(path)


def test_of_a_corpus_only_the_train_split_is_read(tmp_path):
    (tmp_path / "entities.jsonl").write_text(lines(ENTITY), "utf-8")
    mentions = [{**MENTION, "text": f"我爱北京{n}"} for n in range(50)]
    (tmp_path / "mentions.jsonl").write_text(lines(*mentions), "utf-8")
    config = CorpusConfig(
        entities=str(tmp_path / "entities.jsonl"),
        mentions=str(tmp_path / "mentions.jsonl"),
    )
    corpus = load_corpus(config, tmp_path, BadRecords())
    train = [m["text"] for m in mentions if split_of(m["text"], 0.1, 0.1) == "train"]
    assert 30 < len(train) < 50
    assert list(texts.corpus_texts(corpus)) == ["北京", "Peking", "首都。", *train]


def test_a_missing_file_is_named(tmp_path):
    present = tmp_path / "a.txt"
    present.touch()
    texts.require_files([str(present)])
    with pytest.raises(UserError, match=r"--corpus: there is no file .*b\.txt"):
        texts.require_files([str(present), str(tmp_path / "b.txt")])
