"""Candidate generation: what each kind finds, its recall, and the table written."""

from __future__ import annotations

import gzip
import json
import random
import sqlite3
import statistics
import subprocess
import sys
import time
from contextlib import closing

import pytest
from rapidfuzz.distance import OSA

from bert_export.config import CorpusConfig
from bert_export.corpus import candidates_export, jsonl
from bert_export.corpus.aliases import AliasTable, normalize
from bert_export.corpus.candidates import (
    NgramIndex,
    alias_table,
    candidate_generator,
)
from bert_export.corpus.candidates_recall import measure_recall, misspell
from bert_export.corpus.corpus import load_corpus
from bert_export.corpus.records import BadRecords, Entity, Mention
from bert_export.errors import UserError
from tests.command_line import ROOT, SAMPLE, done, refused

ENTITIES = [
    Entity("canton", "Canton of Zürich", ("Zürich",), ""),
    Entity("city", "Zürich", ("Zurich",), "a city"),
    Entity("capital", "北京", ("Peking", "北平"), "首都"),
    Entity("town", "北镇", (), ""),
    Entity("east", "东京", (), ""),
    Entity("tree", "Ash", (), ""),
    Entity("letter", "X", (), ""),
    Entity("accommodation", "accommodation", ("accommodations",), ""),
    Entity("commendation", "commendation", (), ""),
]


def generator(kind, max_candidates=10, entities=ENTITIES):
    table = AliasTable(entities, max_candidates)
    return candidate_generator(kind, table, entities)


def test_exact_takes_surfaces_as_they_are_written():
    exact = generator("exact")
    assert exact.lookup("Zürich") == ("city", "canton")
    assert exact.lookup("Zurich") == ("city",)
    for surface in ("zürich", "Zu\u0308rich", " Zürich", "ash", ""):
        assert exact.lookup(surface) == ()


def test_folded_is_the_alias_table():
    table = AliasTable(ENTITIES, 10)
    assert candidate_generator("folded", table, ENTITIES) is table
    assert table.lookup("ZÜRICH") == ("city", "canton")
    assert table.lookup("Zürch") == ()


@pytest.mark.parametrize(
    ("surface", "first"),
    [
        ("ZÜRICH", ("city", "canton")),
        ("Zürch", ("city", "canton")),
        ("Züirch", ("city", "canton")),
        ("Zurihc", ("city",)),
        ("acommodation", ("accommodation",)),
        ("accomodatoin", ("accommodation",)),
        ("recommendation", ("commendation",)),
        # Two characters: as written, one wrong, one too many, swapped.
        ("北京", ("capital",)),
        ("北経", ("capital",)),
        ("亰京", ("capital", "east")),
        ("北京市", ("capital",)),
        ("镇北", ("town",)),
        ("X", ("letter",)),
        ("Xx", ("letter",)),
        ("as", ("tree",)),
    ],
)
def test_ngrams_find_what_is_misspelt(surface, first):
    found = generator("ngram").lookup(surface)
    assert found[: len(first)] == first
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("surface", ["", " ", "qqqq", "слово", "ZZZZZZZZ", "银"])
def test_ngrams_do_not_find_what_is_nothing_like(surface):
    assert generator("ngram").lookup(surface) == ()


def test_ngrams_put_the_surface_itself_first_and_keep_the_cap():
    names = ["bank", "banks", "tank", "Bank", "rank", "banking", "blank", "bang"]
    entities = [Entity(f"{n}{i}", n, (), "") for i, n in enumerate(names)]
    found = generator("ngram", 8, entities).lookup("BANK")
    assert found[:2] == ("bank0", "Bank3")
    assert set(found) == {entity.id for entity in entities}
    for most in (1, 2, 5):
        assert generator("ngram", most, entities).lookup("BANK") == found[:most]


def test_ngrams_are_the_same_every_time():
    """Also in another process, where strings hash differently."""
    script = (
        "from tests.corpus.test_candidates import generator, many\n"
        "index = generator('ngram', 16, many(500))\n"
        "print([index.lookup(s) for s in ('abcab', 'cc', 'bacab')])\n"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
    assert "e" in printed.pop()


def many(count):
    """Entities with names of few letters, so that many are equally alike."""
    rng = random.Random(4)
    names = ["".join(rng.choices("abc", k=rng.randint(2, 7))) for _ in range(count)]
    return [Entity(f"e{i}", name, (), "") for i, name in enumerate(names)]


def test_ngrams_find_the_nearest_spelling():
    """What comparing with every alias would find comes first, by far most often."""
    rng = random.Random(5)
    letters = "abcdefghijklmnop"
    names = sorted({"".join(rng.choices(letters, k=9)) for _ in range(3000)})
    entities = [Entity(name, name, (), "") for name in names]
    index = generator("ngram", 5, entities)
    right = 0
    for name in rng.sample(names, 100):
        surface = misspell(Mention(name, 0, len(name), None), rng)
        nearest = min(names, key=lambda other: OSA.distance(surface, other))
        right += index.lookup(surface)[0] == nearest
    assert right >= 97


@pytest.mark.slow
def test_ngrams_are_fast_with_as_many_aliases_as_wordnet_has():
    rng = random.Random(6)
    syllables = ["".join(rng.choices("abcdefghilmnoprstuv", k=3)) for _ in range(400)]
    entities = [
        Entity(str(i), "".join(rng.choices(syllables, k=rng.randint(1, 5))), (), "")
        for i in range(150_000)
    ]
    index = generator("ngram", 16, entities)
    seconds = []
    for entity in rng.sample(entities, 100):
        started = time.process_time()
        assert index.lookup(entity.name[:-1] + "x")
        seconds.append(time.process_time() - started)
    assert statistics.median(seconds) < 0.005


def test_without_rapidfuzz_the_extra_is_named():
    for kind in ("exact", "folded", "ngram"):
        result = subprocess.run(
            [
                sys.executable,
                "-c",
                "import sys\n"
                "from bert_export.corpus.aliases import AliasTable\n"
                "from bert_export.corpus.candidates import candidate_generator\n"
                "sys.modules['rapidfuzz'] = None\n"
                f"candidate_generator('{kind}', AliasTable([], 3), [])\n",
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if kind == "ngram":
            assert "pip install 'bert_export[candidates]'" in result.stderr
            assert "UserError" in result.stderr
        else:
            assert result.returncode == 0, result.stderr


def make(tmp_path, mentions, **options):
    jsonl.write_entities(tmp_path / "e.jsonl", ENTITIES)
    jsonl.write_mentions(tmp_path / "m.jsonl", mentions)
    config = CorpusConfig(
        entities=str(tmp_path / "e.jsonl"),
        mentions=str(tmp_path / "m.jsonl"),
        dev_fraction=0.0,
        test_fraction=0.0,
        **options,
    )
    return load_corpus(config, tmp_path, BadRecords())


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("exact", [(), ("city", "canton"), ("tree",)]),
        ("folded", [(), ("city", "canton"), ("tree",)]),
        ("ngram", [("city", "canton"), ("city", "canton"), ("tree",)]),
    ],
)
def test_a_corpus_generates_as_its_config_says(kind, expected, tmp_path):
    mentions = [
        Mention("in Zürch", 3, 8, None),
        Mention("in Zürich", 3, 9, None),
        # Its own candidates are not touched.
        Mention("in Zürch", 3, 8, None, ("tree",)),
    ]
    corpus = make(tmp_path, mentions, candidate_generation=kind, max_candidates=2)
    found = [mention.candidates for mention in corpus.mentions("train")]
    assert found == expected
    # The browser's table is the folded one, whatever else there is.
    assert corpus.aliases.lookup("zürich") == ("city", "canton")
    assert corpus.aliases.lookup("Zürch") == ()
    assert [m.candidates for m in corpus.mentions_as_given("train")] == [
        None,
        None,
        ("tree",),
    ]


def test_recall_is_counted_by_hand(tmp_path):
    mentions = [
        Mention("in Zürich", 3, 9, "canton"),  # second
        Mention("in ZÜRICH", 3, 9, "city"),  # first; not exact
        Mention("an Ash", 3, 6, "letter"),  # not at all
        Mention("an Ash", 3, 6, None),
    ]
    corpus = make(tmp_path, mentions, max_candidates=3)
    measured = measure_recall(corpus, "train", 3)
    assert (measured.mentions, measured.nil, measured.max_candidates) == (3, 1, 3)
    rows = {
        (row["surfaces"], row["candidate_generation"]): row for row in measured.rows
    }
    assert [key[1] for key in rows] == ["exact", "folded", "ngram"] * 2
    assert rows["as written", "exact"]["recall"] == {"1": 0, "2": 1 / 3, "3": 1 / 3}
    assert rows["as written", "exact"]["candidates"] == pytest.approx(1)
    assert rows["as written", "exact"]["without_candidates"] == pytest.approx(1 / 3)
    assert rows["as written", "folded"]["recall"] == {
        "1": pytest.approx(1 / 3),
        "2": pytest.approx(2 / 3),
        "3": pytest.approx(2 / 3),
    }
    assert rows["misspelt", "folded"]["recall"]["3"] == 0
    assert rows["misspelt", "ngram"]["recall"]["3"] == pytest.approx(2 / 3)
    again = measure_recall(corpus, "train", 3)
    for row in (*measured.rows, *again.rows):
        assert row.pop("milliseconds") >= 0
    assert again == measured
    assert measured.to_dict()["rows"] == measured.rows


def test_recall_of_mentions_without_gold_is_refused(tmp_path):
    corpus = make(tmp_path, [Mention("an Ash", 3, 6, None)])
    for split in ("train", "test"):
        with pytest.raises(UserError, match=f"no mention of {split} has a gold entity"):
            measure_recall(corpus, split, 16)


@pytest.mark.parametrize("surface", ["x", "银行", "bank", "São Paulo", "ss", "…"])
def test_a_misspelling_is_one_edit_that_folding_does_not_undo(surface):
    text = f"{surface} in the text"
    edits = random.Random(1)
    seen = set()
    for _ in range(300):
        edited = misspell(Mention(text, 0, len(surface), None), edits)
        assert edited.strip()
        assert normalize(edited) != normalize(surface)
        assert OSA.distance(surface, edited) == 1
        assert set(edited) <= set(text)
        seen.add(len(edited) - len(surface))
    assert seen >= ({0, 1} if len(surface) == 1 else {-1, 0, 1})


def test_the_table_as_json_lines(tmp_path):
    table = AliasTable(ENTITIES, 10)
    for name in ("a.jsonl", "a.jsonl.gz"):
        path = tmp_path / name
        candidates_export.write_aliases(str(path), table, ENTITIES)
        data = path.read_bytes()
        data = gzip.decompress(data) if name.endswith("gz") else data
        records = [json.loads(line) for line in data.decode("utf-8").splitlines()]
        assert records[0] == {"alias": "canton of zürich", "candidates": ["canton"]}
        assert {r["alias"]: tuple(r["candidates"]) for r in records} == table.candidates
    exact = alias_table("exact", table, ENTITIES)
    candidates_export.write_aliases(str(path), exact, ENTITIES)
    first = gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()[0]
    assert json.loads(first)["alias"] == "Canton of Zürich"


def test_the_table_as_a_database(tmp_path):
    table = AliasTable(ENTITIES, 10)
    path = tmp_path / "with blank.sqlite"
    path.write_bytes(b"an older one")
    candidates_export.write_aliases(str(path), table, ENTITIES)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    with closing(sqlite3.connect(path)) as database:
        found = database.execute(
            "SELECT entity, name FROM aliases JOIN entities ON entity = id "
            "WHERE alias = ? ORDER BY rank",
            ["zürich"],
        ).fetchall()
        assert found == [("city", "Zürich"), ("canton", "Canton of Zürich")]
        (pairs,) = database.execute("SELECT count(*) FROM aliases").fetchone()
        assert pairs == sum(map(len, table.candidates.values()))


def test_the_command_measures_and_writes(tmp_path):
    output = tmp_path / "aliases.jsonl"
    command = ("candidates", SAMPLE, f"--workdir={tmp_path / 'work'}")
    printed = done(*command, f"--output={output}").stdout
    assert "27 mentions of test (and 2 NIL, left out)" in printed
    assert len([line for line in printed.splitlines() if " ngram " in line]) == 2
    records = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert {"alias": "quicksilver", "candidates": ["mercury-element"]} in records
    described = json.loads(done(*command, "--json", "--split=dev").stdout)
    assert described["split"] == "dev"
    by_generation = {
        row["candidate_generation"]: row["recall"]
        for row in described["rows"]
        if row["surfaces"] == "misspelt"
    }
    assert list(by_generation["ngram"]) == ["1", "2", "4", "8", "16"]
    assert by_generation["ngram"]["16"] > by_generation["folded"]["16"] + 0.5
    assert "exists; replace it with --overwrite" in refused(
        *command, f"--output={output}"
    )
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--output=aliases.csv"], "--output: expected a file named .jsonl"),
        (["--output=nowhere/a.jsonl"], "--output: there is no directory nowhere"),
        (["--split=all"], "flag --split=all: value should be one of"),
        (
            ["--config.corpus.candidate_generation=fuzzy"],
            "config.corpus.candidate_generation: expected one of ('exact', 'folded',",
        ),
    ],
)
def test_wrong_use_of_the_command_is_refused(flags, expected, tmp_path):
    assert expected in refused("candidates", SAMPLE, f"--workdir={tmp_path}", *flags)


def test_the_index_reads_only_the_table():
    table = AliasTable(ENTITIES, 1)
    assert NgramIndex(table).similar("Zürch") == ["zürich", "zurich"]
