"""A WordNet of a dozen synsets, in the format of wndb(5WN)."""

from __future__ import annotations

import pathlib

import pytest

LICENCE = (
    "  1 A few synsets made up for tests; WordNet 9.9 is the version they claim.  \n"
    "  2   \n"
)

# Key, words (with the syntactic marker of an adjective), type, gloss.
SYNSETS = {
    "noun": [
        (
            "river",
            ["bank", "river_bank"],
            "n",
            'land beside a river; "he sat on the bank"',
        ),
        (
            "money",
            ["bank", "banking_company"],
            "n",
            'a firm that keeps money; "both banks are shut"; '
            '"he owes the Bank of the town"- a clerk; "nothing of the kind"',
        ),
        ("tilt", ["bank"], "n", "a slope in a bend of a road"),
        (
            "lone",
            ["heron"],
            "n",
            'a wading bird of the bank; "a heron stood on the bank"',
        ),
        ("officer", ["man", "man-at-arms"], "n", 'a soldier; "the men-at-arms came"'),
        (
            "guard",
            ["man-at-arms"],
            "n",
            'a keeper of a bank; "he was a man-at-arms"',
        ),
    ],
    "verb": [
        ("yield", ["give_up"], "v", '01 + 02 00 | yield; "she gave up the keys"'),
        ("stop", ["give_up", "quit"], "v", '01 + 02 00 | stop; "do not give up!"'),
        ("jog", ["run"], "v", '01 + 02 00 | go fast; "he is running late"'),
        ("flow", ["run"], "v", '01 + 02 00 | flow; "the river ran dry"'),
    ],
    "adj": [
        ("glad", ["glad(p)", "happy"], "a", 'full of joy; "happier than before"'),
        ("lucky", ["happy"], "s", 'well timed; "a happy chance"'),
        ("willing", ["glad(p)", "happy"], "s", 'ready to run; "I am glad to help"'),
    ],
    "adv": [
        ("well", ["well"], "r", 'in a good way; "she sang well"'),
        ("much", ["well"], "r", 'to a high degree; "it is well past noon"'),
    ],
}
# Sense order: by lemma, the keys above.
SENSES = {
    "noun": {
        "bank": ["money", "river", "tilt"],
        "banking_company": ["money"],
        "heron": ["lone"],
        "man": ["officer"],
        "man-at-arms": ["guard", "officer"],
        "river_bank": ["river"],
    },
    "verb": {
        "give_up": ["stop", "yield"],
        "quit": ["stop"],
        "run": ["jog", "flow"],
    },
    "adj": {"glad": ["glad", "willing"], "happy": ["lucky", "glad", "willing"]},
    "adv": {"well": ["much", "well"]},
}
# What a synset's pointers name, by key.
RELATED = {
    "lone": ["river"],
    "guard": ["river", "money", "guard"],
    "money": ["river"],
    "willing": ["flow"],
}
EXCEPTIONS = {
    "noun": "banks bank\n",
    "verb": "gave give\nran run\nrunning run\n",
    "adj": "happier happy\n",
    "adv": "best well\n",
}


def write_wordnet(directory: pathlib.Path) -> dict[str, str]:
    """Writes the files; returns synset ids by key."""
    ids: dict[str, str] = {}
    kinds = {key: kind for pos in SYNSETS for key, _, kind, _ in SYNSETS[pos]}

    def write_data(pos: str, letter: str) -> None:
        content = LICENCE
        for key, words, kind, gloss in SYNSETS[pos]:
            offset = f"{len(content.encode()):08d}"
            ids[key] = letter + offset
            listed = " ".join(f"{word} 0" for word in words)
            related = RELATED.get(key, [])
            pointers = "".join(
                f" @ {ids.get(other, 'n00000000')[1:]} {kinds[other]} 0000"
                for other in related
            )
            bar = "" if pos == "verb" else "| "
            content += (
                f"{offset} 03 {kind} {len(words):02x} {listed} {len(related):03d}"
                f"{pointers} {bar}{gloss}  \n"
            )
        (directory / f"data.{pos}").write_text(content)

    # Twice, as pointers name synsets that come later; offsets stay the same.
    for _ in range(2):
        for pos, letter in zip(SYNSETS, "nvar"):
            write_data(pos, letter)
    for pos, letter in zip(SYNSETS, "nvar"):
        index = LICENCE
        for lemma, keys in SENSES[pos].items():
            offsets = " ".join(ids[key][1:] for key in keys)
            index += f"{lemma} {letter} {len(keys)} 1 @ {len(keys)} 0 {offsets}  \n"
        (directory / f"index.{pos}").write_text(index)
        (directory / f"{pos}.exc").write_text(EXCEPTIONS[pos])
    return ids


@pytest.fixture
def wordnet(tmp_path: pathlib.Path) -> pathlib.Path:
    directory = tmp_path / "dict"
    directory.mkdir()
    write_wordnet(directory)
    return directory


@pytest.fixture
def wordnet_ids(tmp_path: pathlib.Path) -> dict[str, str]:
    """Synset ids of the `wordnet` fixture by the key of `SYNSETS`."""
    directory = tmp_path / "same_dict"
    directory.mkdir()
    return write_wordnet(directory)
