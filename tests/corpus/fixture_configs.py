"""How each fixture is read: options of `CorpusConfig` by name."""

from __future__ import annotations

import pathlib
from typing import Any

FIXTURES = pathlib.Path(__file__).resolve().parent / "fixtures"
TABLE_COLUMNS = (
    "id=code",
    "name=label",
    "aliases=synonyms",
    "description=note",
    "text=sentence",
    "start=begin_char",
    "end=end_char",
    "gold=code",
    "candidates=choices",
)


def _path(name: str) -> str:
    return str(FIXTURES / name)


CONFIGS: dict[str, dict[str, Any]] = {
    "ccks": {
        "builder": "ccks",
        "entities": _path("ccks/kb_data"),
        "mentions": _path("ccks/train.json"),
        "dev_fraction": 0.2,
        "test_fraction": 0.2,
    },
    "zeshel": {
        "builder": "zeshel",
        "entities": _path("zeshel/documents"),
        "mentions": _path("zeshel/mentions/train.json"),
        "dev_mentions": _path("zeshel/mentions/val.json"),
        "test_mentions": _path("zeshel/mentions/test.json"),
        "zeshel_candidates": (_path("zeshel/tfidf_candidates"),),
    },
    "blink": {
        "builder": "zeshel",
        "entities": _path("blink/documents.jsonl"),
        "mentions": _path("blink/train.jsonl"),
        "dev_mentions": _path("blink/valid.jsonl"),
        "test_mentions": _path("blink/test.jsonl"),
    },
    "blink_labels": {
        "builder": "zeshel",
        "mentions": _path("blink/train.jsonl"),
        "dev_mentions": _path("blink/valid.jsonl"),
        "test_mentions": _path("blink/test.jsonl"),
    },
    "aida": {"builder": "aida", "mentions": _path("aida/AIDA-YAGO2-dataset.tsv")},
    "medmentions": {
        "builder": "pubtator",
        "mentions": _path("pubtator/corpus_pubtator.txt"),
        "pubtator_pmids": tuple(
            _path(f"pubtator/corpus_pubtator_pmids_{name}.txt")
            for name in ("trng", "dev", "test")
        ),
    },
    "bc5cdr": {
        "builder": "pubtator",
        "mentions": _path("pubtator/CDR_TrainingSet.PubTator.txt"),
        "dev_mentions": _path("pubtator/CDR_DevelopmentSet.PubTator.txt"),
        "test_mentions": _path("pubtator/CDR_TestSet.PubTator.txt"),
    },
    "csv": {
        "builder": "table",
        "entities": _path("table/entities.csv"),
        "mentions": _path("table/mentions.csv"),
        "table_columns": TABLE_COLUMNS,
    },
    "tsv": {
        "builder": "table",
        "entities": _path("table/entities.tsv"),
        "mentions": _path("table/mentions.tsv"),
        "dev_fraction": 0.3,
        "test_fraction": 0.3,
    },
}
