"""GCIDE's text, made up for these tests in the form of the real one."""

from __future__ import annotations

import dataclasses
import gzip
import os
import pathlib
import shutil
import zlib

import pytest

from bert_export import pipeline
from bert_export.config import CorpusConfig
from bert_export.corpus import gcide, jsonl, packages
from bert_export.corpus.candidates_recall import measure_recall
from bert_export.corpus.corpus import load_corpus, source_paths
from bert_export.corpus.morphy import Morphy
from bert_export.corpus.records import BadRecords, Mention
from bert_export.corpus.wordnet import build_wordnet
from bert_export.errors import UserError
from tests.corpus.test_wordnet import program
from tests.test_pipeline import sample_config, summary

TEXT = r"""
00-database-info
   A dictionary for tests.

Bank \Bank\ (b[a^][ng]k), n. [OE. banke; akin to E. bench, n.,
   and prob. of Scand. origin. See {Bench}.]
   1. A long heap of earth; hence, [Obs.] anything like it; as, a
      bank of fog; as, a bank of {r['o]ses}, etc.
      [1913 Webster]

            They cast up a bank
            against the town.            --2 Sam. xx.
                                                  15.
      [1913 Webster]

   2. The side of a river. "The banks were steep." --A. Writer.
      [1913 Webster +PJC]

            Green banks, he said, are soft;
            and none but they. --Poet.
      [1913 Webster]

            He fell asleep on the bank.
      [1913 Webster]

   3. (Mining)
      (a) The face of the coal. See {Coal}.
      (b) The ground at the top of a shaft; as, ore is brought
          to bank.
          [1913 Webster]

                They left the bank at dusk. --A. Miner.
          [1913 Webster]

   4. See {Bench}.

   5. A company that lends money; as, to owe the bank money.
      [WordNet 1.5]

   {Bank swallow}, a bird that nests in a bank; as, two bank
      swallows.
      [1913 Webster]

Bank \Bank\, v. t. [imp. & p. p. {Banked}.]
   To heap up with earth; as, he banked the fire. -- {Bank"er},
   n. -- {Bank"ing}, n.
   [1913 Webster]

         She banks the snow. --Poet.
   [1913 Webster]

Bank \Bank\, n. [F. banque.]
   A place that keeps money; as, the Bank of E["e]n.
   [1913 Webster]

   Syn: A shore; as, a bank of sand.
        [1913 Webster]

Alas \A*las"\, interj. [OF. alas.]
   A cry of grief; as, alas, the bank.
   [1913 Webster]

Able \A"ble\ ([=a]"b'l), a. [Comp. {Abler}.]
   Strong enough to do a thing.

Abler
   See {Able}.
"""
BANK = {
    ("A long heap of earth; hence, anything like it"): (
        "They cast up a bank against the town",
        "a bank of fog",
        "a bank of roses, etc",
    ),
    "The side of a river.": (
        "Green banks, he said, are soft; and none but they",
        "He fell asleep on the bank",
        "The banks were steep",
    ),
    "(Mining) The face of the coal. See Coal.": (),
    "(Mining) The ground at the top of a shaft": (
        "They left the bank at dusk",
        "ore is brought to bank",
    ),
    "A place that keeps money": ("the Bank of Een",),
}


def write(path: pathlib.Path, text: str = TEXT) -> pathlib.Path:
    path.write_bytes(gzip.compress(text.encode()))
    return path


def test_senses_with_their_quotations(tmp_path):
    senses = gcide.read_senses(write(tmp_path / "gcide.dict.dz"))
    assert {
        sense.definition: sense.quotations
        for sense in senses
        if (sense.headword, sense.pos) == ("bank", "n")
    } == BANK
    assert [
        sense for sense in senses if sense.headword != "bank" or sense.pos != "n"
    ] == [
        gcide.Sense(
            "bank",
            "v",
            "To heap up with earth",
            ("She banks the snow", "he banked the fire"),
        ),
        gcide.Sense("able", "a", "Strong enough to do a thing.", ()),
    ]


@pytest.mark.parametrize(
    ("header", "pos"),
    [
        (r"Run \Run\, n.", "n"),
        (r"Run \Run\, v. i. [imp. {Ran}, n.]", "v"),
        (r"Run \Run\, a.", "a"),
        (r"Run \Run\, p. a.", "a"),
        (r"Run \Run\ (r[u^]n), adv.", "r"),
        (r"Run \Run\ (r[u^]n, n.), v. t. & i.", "v"),
        (r"Run \Run\, n.; pl. {Runs}.", "n"),
        (r"Run \Run\, prep.", None),
        (r"Run \Run\, imp. of", None),
        (r"Run", None),
    ],
)
def test_part_of_speech(tmp_path, header, pos):
    text = f"{header}\n   To go fast; as, they run.\n\n{TEXT.strip()}\n"
    senses = gcide.read_senses(write(tmp_path / "g.dz", text))
    assert [sense.pos for sense in senses if sense.headword == "run"] == [pos] * bool(
        pos
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"Bank, n. A heap.\n", "Not a gzipped file"),
        (gzip.compress(TEXT.encode())[:-400], "ended before"),
        (gzip.compress(b"nothing\n   of the kind\n"), "no entries of GCIDE"),
        (gzip.compress(b""), "no entries of GCIDE"),
    ],
)
def test_a_file_that_is_not_gcide(tmp_path, content, said):
    path = tmp_path / "gcide.dict.dz"
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        gcide.read_senses(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert said in str(raised.value)


def test_damaged_bytes(tmp_path):
    whole = bytearray(gzip.compress(TEXT.encode()))
    whole[200:260] = bytes(60)
    path = tmp_path / "gcide.dict.dz"
    path.write_bytes(whole)
    with pytest.raises((OSError, zlib.error)):
        gzip.decompress(bytes(whole))
    with pytest.raises(UserError, match="cannot be read as GCIDE's text"):
        gcide.read_senses(path)


def senses_of(*quotations: tuple[str, ...]) -> list[gcide.Sense]:
    return [
        gcide.Sense("bank", "n", f"meaning {number}", own)
        for number, own in enumerate(quotations, 1)
    ]


MORPHY = {"n": Morphy("noun", {})}


def test_quotations_become_mentions():
    senses = senses_of(("both banks are wet", "no such word"), ("a Bank of sand",))
    alone = gcide.Sense("shore", "n", "a bank", ("on the shore",))
    entities, mentions = gcide.training_corpus([*senses, alone], MORPHY, [])
    ids = ("gcide:bank:n:1", "gcide:bank:n:2")
    assert mentions == [
        Mention("both banks are wet", 5, 10, ids[0], ids),
        Mention("a Bank of sand", 2, 6, ids[1], ids),
    ]
    assert [
        (each.id, each.name, each.aliases, each.description) for each in entities
    ] == [
        (ids[0], "bank", (), "meaning 1"),
        (ids[1], "bank", (), "meaning 2"),
    ]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("They sat on the bank of the Loire.", False),
        ("We sat, on the -- BANK.", False),
        ("on the bank", True),
        ("they sat on the old bank", True),
        ("a bank", False),
        ("a bank of clay", True),
    ],
)
def test_what_shares_words_with_held_out_texts_is_left_out(text, kept):
    held_out = ["he sat on the bank", "We sat on the bank of the Seine", "A bank!"]
    _, mentions = gcide.training_corpus(senses_of((text,), ()), MORPHY, held_out)
    assert [mention.text for mention in mentions] == [text] * kept


def test_candidates_are_the_next_senses():
    senses = senses_of(*((f"bank {number}",) for number in range(1, 31)))
    entities, mentions = gcide.training_corpus(senses, MORPHY, [])
    assert len(mentions) == len(entities) == 30
    numbers = [
        [int(id.rpartition(":")[2]) for id in mention.candidates or ()]
        for mention in mentions
    ]
    assert numbers[0] == numbers[6] == list(range(1, 13))
    assert numbers[7] == list(range(2, 14))
    assert numbers[29] == list(range(19, 31))
    for number, (mention, candidates) in enumerate(zip(mentions, numbers), 1):
        assert mention.gold == f"gcide:bank:n:{number}"
        assert number in candidates
    # Entities that are nobody's candidates are not written.
    few = [*senses_of(("bank 1",)), *senses_of(*[()] * 29)]
    assert len(gcide.training_corpus(few, MORPHY, [])[0]) == 12


def config(wordnet: pathlib.Path, **options) -> CorpusConfig:
    return CorpusConfig(
        builder="wordnet",
        wordnet_dir=str(wordnet),
        dev_fraction=0.3,
        test_fraction=0.3,
        **options,
    )


def test_wordnet_is_trained_on_with_it_and_stays_what_it_is(tmp_path, wordnet):
    path = write(tmp_path / "gcide.dict.dz")
    plain = load_corpus(config(wordnet), tmp_path / "plain", BadRecords(0))
    found = load_corpus(
        config(wordnet, wordnet_gcide=True, gcide=str(path)), tmp_path, BadRecords(0)
    )
    assert found.entities == plain.entities
    assert found.aliases.lookup("bank") == plain.aliases.lookup("bank")
    for split in ("dev", "test"):
        assert list(found.mentions(split)) == list(plain.mentions(split))
    own, theirs = list(plain.mentions("train")), list(found.mentions("train"))
    assert theirs[: len(own)] == own
    # 'he sat on the bank' and the like are held out.
    assert {mention.text for mention in theirs[len(own) :]} == {
        quotation for quotations in BANK.values() for quotation in quotations
    }
    texts = found.candidate_texts(("name", "aliases", "description"))
    assert texts["gcide:bank:n:2"] == "bank: The side of a river."
    assert (
        texts.items()
        > plain.candidate_texts(("name", "aliases", "description")).items()
    )
    files = source_paths(config(wordnet, wordnet_gcide=True, gcide=str(path)), tmp_path)
    assert files.items() - source_paths(config(wordnet), tmp_path).items() == {
        ("gcide", path)
    }


def test_its_senses_are_unknown_to_held_out_mentions(tmp_path, wordnet):
    options = config(wordnet, wordnet_gcide=True, gcide=str(write(tmp_path / "g.dz")))
    corpus = load_corpus(options, tmp_path, BadRecords(0))
    train = next(m for m in corpus.mentions("train") if str(m.gold).startswith("gcide"))
    jsonl.write_mentions(corpus.files["test"], [train])
    with pytest.raises(UserError, match="gcide:bank:n:1"):
        list(corpus.mentions("test"))


def test_candidate_recall_is_that_of_the_knowledge_base(tmp_path, wordnet):
    path = write(tmp_path / "gcide.dict.dz")
    plain = load_corpus(config(wordnet), tmp_path / "plain", BadRecords(0))
    found = load_corpus(
        config(wordnet, wordnet_gcide=True, gcide=str(path)), tmp_path, BadRecords(0)
    )
    recalls = [measure_recall(corpus, "train", 16) for corpus in (plain, found)]
    assert recalls[0].mentions == recalls[1].mentions > 0
    assert recalls[0].nil == recalls[1].nil


def test_its_pairs_are_in_the_training_records(tmp_path, wordnet):
    corpus = dataclasses.asdict(
        config(wordnet, wordnet_gcide=True, gcide=str(write(tmp_path / "g.dz")))
    )
    prepared = sample_config(corpus=corpus)
    data = pipeline.prepare(prepared, tmp_path / "work")
    loaded = load_corpus(prepared.corpus, tmp_path / "work", BadRecords(0))
    mentions = list(loaded.mentions("train"))
    assert data.train.num_mentions == len(mentions)
    assert data.train.num_records == sum(len(m.candidates or ()) for m in mentions)
    assert summary(tmp_path / "work")["entities"] == len(loaded.entities)


def test_what_is_built_anew(tmp_path, wordnet):
    path, out = write(tmp_path / "gcide.dict.dz"), tmp_path / "out"
    entities = out / "training_entities.jsonl.gz"

    def build(**options):
        return build_wordnet(wordnet, None, out, **options)

    facts = build(gcide_file=path)
    assert facts["training_entities"] == 5
    written = entities.stat().st_mtime_ns
    assert build(gcide_file=path) == facts
    assert entities.stat().st_mtime_ns == written
    entities.unlink()
    assert build(gcide_file=path) == facts
    assert entities.exists()
    write(path, TEXT.replace("fog", "mist"))
    assert build(gcide_file=path)["fingerprint"] != facts["fingerprint"]
    assert "training_entities" not in build()
    assert not entities.exists()


def test_a_named_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no such file, expected GCIDE") as raised:
        gcide.find(tmp_path / "gcide.dict.dz")
    assert "apt-get install dict-gcide" in str(raised.value)


@pytest.fixture
def programs(tmp_path, monkeypatch) -> pathlib.Path:
    """Stands for the machine's programs; its cache is tmp_path/cache/bert_export."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(gcide, "_FILE", tmp_path / "usr/share/dictd/gcide.dict.dz")
    return directory


def test_it_is_fetched_once_with_fresh_lists_where_apt_knows_nothing(
    tmp_path, programs
):
    cp, mkdir, touch = (
        shutil.which(name, path="/bin:/usr/bin") for name in ("cp", "mkdir", "touch")
    )
    source = write(tmp_path / "source")
    log = tmp_path / "log"
    # Downloads only when asked with lists of the caller's, which update has made.
    program(
        programs,
        "apt-get",
        f"""echo "$@" >> '{log}'
        fresh="${{2#Dir::State::Lists=}}/fresh"
        case "$1 $3" in
          "-o update") {touch} "$fresh";;
          "-o download") [ -e "$fresh" ] && : > dict-gcide_1_all.deb;;
          *) echo "E: Unable to locate package dict-gcide" >&2; exit 100;;
        esac""",
    )
    inside = f"$3{gcide._FILE}"
    program(
        programs,
        "dpkg-deb",
        f"""[ "$1" = -x ] && [ -e "$2" ] && {mkdir} -p "${{3}}{gcide._FILE.parent}" \
        && {cp} '{source}' "{inside}" """,
    )
    found = gcide.find(None)
    assert found == tmp_path / "cache" / "bert_export" / "gcide.dict.dz"
    assert found.read_bytes() == source.read_bytes()
    assert os.listdir(found.parent) == [found.name]
    commands = log.read_text().splitlines()
    assert commands[0] == "download dict-gcide"
    assert [line.split(" ", 2)[2] for line in commands[1:]] == [
        "update",
        "download dict-gcide",
    ]
    assert gcide.find(None) == found
    assert log.read_text().splitlines() == commands


@pytest.mark.parametrize(
    ("apt", "said"),
    [
        (
            "echo 'E: no such package' >&2; exit 100",
            "apt-get download dict-gcide: E: no such package",
        ),
        ("exit 0", "no dict-gcide_*.deb was downloaded"),
        (None, "apt-get: not installed here"),
    ],
)
def test_where_it_cannot_be_fetched(tmp_path, programs, apt, said):
    if apt:
        program(programs, "apt-get", apt)
    with pytest.raises(UserError) as raised:
        gcide.find(None)
    assert said in str(raised.value)
    assert "--config.corpus.gcide=FILE" in str(raised.value)
    assert os.listdir(tmp_path / "cache" / "bert_export") == []


def test_an_unknown_package_of_the_real_apt(tmp_path):
    if not shutil.which("apt-get"):
        pytest.skip("apt-get is not installed")
    with pytest.raises(packages.FAILURES) as raised:
        packages.unpack_debian("bert-export-is-no-such-package", tmp_path)
    assert "bert-export-is-no-such-package" in packages.describe(raised.value)
