"""A corpus in another format, prepared by its builder and from its converted files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from bert_export import config_file, pipeline
from bert_export.config import Config, resolve
from bert_export.corpus import convert
from bert_export.corpus.records import BadRecords
from tests.command_line import ROOT, done
from tests.corpus.fixture_configs import CONFIGS


def configured(**corpus) -> Config:
    """The sample's config with another corpus."""
    values = config_file.get_config(str(ROOT / "configs" / "sample.py")).to_dict()
    values["corpus"].update(
        {"entities": None, "mentions": None, "dev_fraction": 0.1, "test_fraction": 0.1}
    )
    values["corpus"].update(corpus)
    return resolve(values)


def records(workdir: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (workdir / "records").glob("*.tfrecord")
    }


# One of each builder; tests/corpus/test_convert.py compares the mentions of all.
@pytest.mark.parametrize("name", ["ccks", "zeshel", "aida", "medmentions", "csv"])
def test_prepare_gives_the_same_records_either_way(name, tmp_path):
    config = configured(**CONFIGS[name])
    built = pipeline.prepare(config, tmp_path / "built")
    converted = convert.convert(config.corpus, tmp_path / "jsonl", BadRecords())
    files = {role: str(path) for role, path in converted.files.items()}
    read = pipeline.prepare(
        configured(
            entities=files["entities"],
            mentions=files["train"],
            dev_mentions=files.get("dev"),
            test_mentions=files.get("test"),
            dev_fraction=config.corpus.dev_fraction,
            test_fraction=config.corpus.test_fraction,
        ),
        tmp_path / "read",
    )
    assert records(tmp_path / "built") == records(tmp_path / "read")
    assert len(records(tmp_path / "built")) == 3
    assert built.fingerprint == read.fingerprint
    for split in ("train", "dev", "test"):
        found, expected = built.split(split), read.split(split)
        assert found.num_mentions == expected.num_mentions
        assert found.num_records == expected.num_records
        assert found.no_candidates == expected.no_candidates
    assert built.train.num_mentions > 0


def test_a_config_file_names_the_format(tmp_path):
    config = tmp_path / "cdr.py"
    options = [f"    config.corpus.{k} = {v!r}\n" for k, v in CONFIGS["bc5cdr"].items()]
    config.write_text(
        "import runpy\n"
        "def get_config():\n"
        f"    sample = runpy.run_path({str(ROOT / 'configs' / 'sample.py')!r})\n"
        "    config = sample['get_config']()\n"
        "    config.corpus.entities = None\n" + "".join(options) + "    return config\n"
    )
    workdir = tmp_path / "work"
    done("prepare", f"--config={config}", f"--workdir={workdir}")
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["entities"] == 4
    left_out = [
        sum(split["mentions_without_candidates"].values())
        for split in summary["splits"].values()
    ]
    counts = [split["mentions"] for split in summary["splits"].values()]
    assert [sum(both) for both in zip(counts, left_out)] == [6, 2, 2]
    assert counts[0] == 5  # nothing is called 'green tea'
    facts = json.loads((workdir / "corpus/pubtator/converted.json").read_text())
    assert facts["mentions"] == {"train": 6, "dev": 2, "test": 2}
