from __future__ import annotations

import itertools
from typing import NamedTuple

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from bert_export.config import FeaturesConfig
from bert_export.errors import UserError
from bert_export.features.pairs import PairEncoder
from bert_export.features.tokenizer import WordPiece
from tests.features.strategies import characters, many, texts


def encoder(vocab: list[str], max_seq_length: int = 128, marker: str = "", **options):
    config = FeaturesConfig(
        max_seq_length=max_seq_length, mention_marker=marker, **options
    )
    return PairEncoder(WordPiece(vocab, config), config)


@pytest.fixture(scope="module")
def default_encoder(vocab):
    return encoder(vocab)


class Row(NamedTuple):
    """An encoded pair, as word pieces."""

    tokens: list[str]
    segments: list[int]
    mention: list[str]
    ok: bool

    @property
    def text(self) -> list[str]:
        return self.tokens[1 : self.segments.count(0) - 1]

    @property
    def candidate(self) -> list[str]:
        return self.tokens[self.segments.count(0) : -1]


def encode(pairs: PairEncoder, vocab: list[str], *rows: tuple) -> list[Row]:
    """Rows of (text, start, end, candidate)."""
    text, start, end, candidate = zip(*rows)
    encoded = pairs(
        tf.constant(text), tf.constant(start), tf.constant(end), tf.constant(candidate)
    )
    assert encoded.input_ids.dtype == tf.int64
    found = []
    for ids, segments, first, last, ok in zip(
        encoded.input_ids.to_list(),
        encoded.segment_ids.to_list(),
        encoded.start_ps.numpy(),
        encoded.end_ps.numpy(),
        encoded.ok.numpy(),
    ):
        tokens = [vocab[index] for index in ids]
        found.append(Row(tokens, segments, tokens[first : last + 1], bool(ok)))
    return found


def encode_marked(pairs: PairEncoder, vocab: list[str], marked: str) -> Row:
    """Encodes a text whose mention stands between ⟦ and ⟧."""
    before, mention, after = marked.replace("⟧", "⟦").split("⟦")
    text = before + mention + after
    start = len(before)
    return encode(pairs, vocab, (text, start, start + len(mention), "a place"))[0]


@pytest.mark.parametrize(
    ("marked", "mention"),
    [
        ("he sat on the ⟦bank⟧.", ["bank"]),
        ("⟦the bank⟧", ["the", "bank"]),
        # Inside a word, and inside a word piece: the pieces that are touched.
        ("un⟦affable⟧", ["##aff", "##able"]),
        ("una⟦f⟧fable", ["##aff"]),
        ("un⟦affa⟧ble", ["##aff", "##able"]),
        ("⟦bank⟧s", ["bank"]),
        # White space and punctuation at its ends.
        ("the⟦ bank ⟧of", ["bank"]),
        ("the ⟦bank.⟧ of", ["bank", "."]),
        ("the⟦-⟧bank", ["-"]),
        # Case, accents composed and not.
        ("⟦BANK⟧", ["bank"]),
        ("a ⟦Río⟧ a", ["r", "##i", "##o"]),
        ("a ⟦Ri\u0301o⟧ a", ["r", "##i", "##o"]),
        ("a Ri⟦\u0301⟧o a", ["##i"]),
        ("a R⟦i⟧\u0301o a", ["##i"]),
        # Chinese characters stand alone.
        ("北京⟦银行⟧北", ["银", "行"]),
        ("北⟦京⟧银行", ["京"]),
        # Thai has no spaces, and a vowel sign that is dropped like an accent.
        ("ก⟦มา⟧า", ["[UNK]"]),
        ("a ⟦มา⟧ a", ["มา"]),
        # Right to left.
        ("في ⟦بنك⟧ ب", ["بنك"]),
        ("\u202e⟦بنك⟧\u202c ب", ["بنك"]),
        # Hangul is decomposed: the pieces of the syllable, no other's.
        ("한⟦국⟧한", ["##ᄀ", "##ᅮ", "##ᆨ"]),
        ("⟦한⟧국", ["ᄒ", "##ᅡ", "##ᆫ"]),
        # One character that becomes three pieces.
        ("a⟦…⟧a", [".", ".", "."]),
        # Emoji, unknown and long words are one [UNK].
        ("a ⟦👨\u200d👩\u200d👧⟧ a", ["[UNK]"]),
        ("a 👨\u200d⟦👩⟧\u200d👧 a", ["[UNK]"]),
        ("a⟦\ufffd⟧ a", ["[UNK]"]),
        ("a " + "x" * 60 + "⟦x⟧" + "x" * 60 + " a", ["[UNK]"]),
        # Characters without a trace, in and around the mention.
        ("a ba⟦\u200d⟧nk a", ["bank"]),
        ("a ⟦\u200dbank\u200d⟧ a", ["bank"]),
        ("a⟦\x00bank\x01⟧a", ["bank"]),
        # The names of special tokens are plain text.
        ("a ⟦[MASK]⟧ a", ["[", "mask", "]"]),
    ],
)
def test_mention_pieces(vocab, marked, mention):
    row = encode_marked(encoder(vocab), vocab, marked)
    assert row.ok
    assert row.mention == mention


@pytest.mark.parametrize(
    "marked",
    ["a⟦⟧b", "a⟦ ⟧b", "a ⟦\u200d\u202e⟧ b", "a⟦\x00\x01⟧b", "a ⟦\u0301⟧a", "⟦⟧"],
)
def test_mention_without_a_piece(vocab, marked):
    for marker in ("", '"'):
        row = encode_marked(encoder(vocab, marker=marker), vocab, marked)
        assert not row.ok
        assert row.mention == ["[CLS]"]


@pytest.mark.parametrize(
    ("start", "end"),
    [(-1, 2), (2, 2), (3, 2), (3, 9), (7, 8), (2**33, 2**33 + 1), (0, 2**32 + 1)],
)
def test_offsets_outside_the_text(vocab, start, end):
    rows = [("the bank", 4, 8, "x"), ("a bank", start, end, "x")]
    pairs = encoder(vocab)
    text, starts, ends, candidate = zip(*rows)
    encoded = pairs(
        tf.constant(text),
        tf.constant(starts, tf.int64),
        tf.constant(ends, tf.int64),
        tf.constant(candidate),
    )
    np.testing.assert_array_equal(encoded.ok, [True, False])
    np.testing.assert_array_equal(encoded.start_ps, [2, 0])


@many
@hypothesis.given(
    st.lists(
        st.lists(st.text(characters, min_size=1, max_size=6), min_size=1, max_size=4),
        min_size=1,
        max_size=6,
    ),
    st.data(),
)
def test_mentions_of_whole_words(default_encoder, sentences, data):
    """The pieces up to a word's end are counted without any offsets."""
    wordpiece = default_encoder.tokenizer
    rows, before, upto = [], [], []
    for words in sentences:
        i = data.draw(st.integers(0, len(words) - 1))
        j = data.draw(st.integers(i + 1, len(words)))
        before.append("".join(word + " " for word in words[:i]))
        upto.append(" ".join(words[:j]))
        rows.append((" ".join(words), len(before[-1]), len(upto[-1])))
    text, start, end = zip(*rows)
    found = default_encoder.encode_text(
        tf.constant(text), tf.constant(start), tf.constant(end)
    )
    first = wordpiece.tokenize(tf.constant(before)).row_lengths().numpy()
    last = wordpiece.tokenize(tf.constant(upto)).row_lengths().numpy() - 1
    np.testing.assert_array_equal(found.ok, (first <= last) & (last < first + 63))
    np.testing.assert_array_equal(found.first, first)
    np.testing.assert_array_equal(found.last, last)


def touched(wordpiece: WordPiece, text: str, start: int, end: int) -> set[int]:
    """Pieces that share a character with text[start:end].

    Found by normalizing each character alone, which needs none of the normalizer's
    offsets. A character without a trace counts for the piece right before it.
    """
    normalizer, splitter = wordpiece._ops()
    alone = normalizer.normalize(tf.constant(list(text))).numpy() if text else []
    whole = normalizer.normalize(tf.constant([text]))
    assert b"".join(alone) == whole.numpy()[0]
    borders = [0, *itertools.accumulate(len(normalized) for normalized in alone)]
    _, piece_starts, piece_ends = splitter.tokenize_with_offsets(whole)
    pieces = list(enumerate(zip(piece_starts[0].numpy(), piece_ends[0].numpy())))
    found = set()
    for character in range(start, end):
        begin, stop = borders[character], borders[character + 1]
        if begin == stop:
            found |= {piece for piece, (_, e) in pieces if begin == e}
            found |= {piece for piece, (s, e) in pieces if s < begin < e}
        else:
            found |= {piece for piece, (s, e) in pieces if s < stop and e > begin}
    return found


@pytest.mark.parametrize("lower_case", [True, False])
def test_mentions_anywhere(vocab, lower_case):
    pairs = encoder(vocab, lower_case=lower_case)
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    features = FeaturesConfig(lower_case=lower_case)
    only_words = WordPiece([*specials, "never"], features)

    @many
    @hypothesis.given(st.lists(texts, min_size=1, max_size=4), st.data())
    def check(batch, data):
        start = [data.draw(st.integers(0, len(text) - 1)) for text in batch]
        end = [data.draw(st.integers(s + 1, len(t))) for s, t in zip(start, batch)]
        found = pairs.encode_text(
            tf.constant(batch), tf.constant(start), tf.constant(end)
        )
        _, word_starts, word_ends = only_words.tokenize_with_offsets(tf.constant(batch))
        _, piece_starts, piece_ends = pairs.tokenizer.tokenize_with_offsets(
            tf.constant(batch)
        )
        for i, text in enumerate(batch):
            first, last = int(found.first[i]), int(found.last[i])
            expected = touched(pairs.tokenizer, text, start[i], end[i])
            assert set(range(first, last + 1)) == expected
            assert bool(found.ok[i]) == (0 < len(expected) <= pairs.text_room)
            if not expected:
                continue
            # Words, of a vocabulary that makes one piece of each: the pieces reach
            # no byte outside the words that the mention's bytes touch.
            start_byte = len(text[: start[i]].encode())
            end_byte = len(text[: end[i]].encode())
            near = [
                (s, e)
                for s, e in zip(word_starts[i].numpy(), word_ends[i].numpy())
                if s < end_byte and e > start_byte
            ]
            assert near[0][0] <= piece_starts[i, first]
            assert piece_ends[i, last] <= near[-1][1]

    check()


def test_special_tokens_in_text_and_candidate_are_text(vocab):
    pairs = encoder(vocab)
    (row,) = encode(pairs, vocab, ("[CLS] bank [SEP]", 6, 10, "[SEP] [MASK] [PAD]"))
    specials = [index for index, token in enumerate(row.tokens) if len(token) == 5]
    assert specials == [0, row.segments.count(0) - 1, len(row.tokens) - 1]


@pytest.mark.parametrize(
    ("max_seq_length", "text", "candidate"),
    [
        # Room for 9: all of it fits.
        (12, "a b c d", "e f g h i"),
        # The text's part is 5, the candidate gets the other 4.
        (12, "d e f g h", "i j k l"),
        # A short candidate leaves more to the text.
        (12, "c d e f g h i", "a b"),
        (12, "b c d e f g h i j", ""),
        # A short text leaves more to the candidate.
        (12, "f", "a b c d e f g h"),
    ],
)
def test_a_pair_that_fits_is_not_cut(vocab, max_seq_length, text, candidate):
    start = text.index("f") if "f" in text else 0
    pairs = encoder(vocab, max_seq_length)
    (row,) = encode(pairs, vocab, (text, start, start + 1, candidate))
    assert row.ok
    assert row.text == text.split()
    assert row.candidate == candidate.split()


@pytest.mark.parametrize(
    ("marked", "candidate", "expected"),
    [
        ("a b c d e f ⟦g⟧ h i j k l m", "n o p r s t", "e f g h i|n o p r"),
        ("⟦a⟧ b c d e f g h i j k l m", "n o p r s t", "a b c d e|n o p r"),
        ("a b c d e f g h i j k ⟦l⟧ m", "n o p r s t", "i j k l m|n o p r"),
        ("a b c d e f ⟦g h⟧ i j k l m", "n o p r s t", "f g h i j|n o p r"),
        ("a b c d e f ⟦g⟧ h i j k l m", "n o", "d e f g h i j|n o"),
        ("a b c d e f ⟦g⟧ h i j k l m", "", "c d e f g h i j k|"),
        ("a b ⟦c⟧", "n o p r s t u v w", "a b c|n o p r s t"),
    ],
)
def test_a_pair_is_cut_around_the_mention(vocab, marked, candidate, expected):
    before, mention, after = marked.replace("⟧", "⟦").split("⟦")
    text, start = before + mention + after, len(before)
    pairs = encoder(vocab, 12)
    (row,) = encode(pairs, vocab, (text, start, start + len(mention), candidate))
    assert " ".join(row.text) + "|" + " ".join(row.candidate) == expected
    assert row.mention == mention.split()


def test_marker(vocab):
    pairs = encoder(vocab, 12, marker='"')
    rows = encode(
        pairs,
        vocab,
        ("he sat on the bank", 14, 18, ""),
        ("bank", 0, 4, "a b c d e f g h"),
        ("a b c d e f g bank", 14, 18, "a b c d e f g h"),
        ("bank a b c d e f g", 0, 4, "a b c d e f g h"),
    )
    assert [" ".join(row.text) for row in rows] == [
        'he sat on the " bank "',
        '" bank "',
        'f g " bank "',
        '" bank " a b',
    ]
    assert all(row.mention == ["bank"] and row.ok for row in rows)


@pytest.mark.parametrize("marker", ["<m>", "[UNK]", "two words"])
def test_unknown_marker(vocab, marker):
    with pytest.raises(UserError, match=r"features\.mention_marker"):
        encoder(vocab, marker=marker)


@pytest.mark.parametrize(("marker", "longest"), [("", 5), ('"', 3)])
def test_mention_longer_than_the_window(vocab, marker, longest):
    pairs = encoder(vocab, 12, marker=marker)
    letters = "a b c d e f g h"
    # The same mention is as good or bad with a short candidate as with a long one.
    for candidate in ("", "x", "x " * 20):
        good, bad = encode(
            pairs,
            vocab,
            (letters, 0, 2 * longest - 1, candidate),
            (letters, 0, 2 * longest + 1, candidate),
        )
        assert good.ok
        assert good.mention == letters.split()[:longest]
        assert not bad.ok
        assert max(len(good.tokens), len(bad.tokens)) <= 12


def test_any_pair_keeps_the_rules(vocab):
    lengths, markers = (8, 9, 12, 17, 30), ("", '"')
    quote = vocab.index('"')

    @many
    @hypothesis.given(
        st.sampled_from([encoder(vocab, n, m) for n in lengths for m in markers]),
        st.lists(
            st.tuples(
                st.text(st.sampled_from("ab한 …"), max_size=40),
                st.integers(0, 40),
                st.integers(0, 12),
                st.text(st.sampled_from("cd "), max_size=30),
            ),
            min_size=1,
            max_size=4,
        ),
    )
    def check(pairs, cases):
        rows = [(t, min(s, len(t)), min(s + n, len(t)), c) for t, s, n, c in cases]
        max_seq_length = pairs.max_seq_length
        room = max_seq_length - 3
        text, start, end, candidate = zip(*rows)
        pieces = pairs.encode_text(
            tf.constant(text), tf.constant(start), tf.constant(end)
        )
        full_candidates = pairs.tokenizer.tokenize(tf.constant(candidate)).to_list()
        encoded = pairs(*map(tf.constant, (text, start, end, candidate)))
        for i, full_text in enumerate(pieces.ids.to_list()):
            tokens = encoded.input_ids[i].numpy().tolist()
            segments = encoded.segment_ids[i].numpy().tolist()
            first_sep = segments.count(0) - 1
            kept_text = tokens[1:first_sep]
            kept_candidate = tokens[first_sep + 1 : -1]
            full_candidate = full_candidates[i]
            assert len(tokens) <= max_seq_length
            assert segments == sorted(segments)
            assert tokens[0] == vocab.index("[CLS]")
            assert tokens[first_sep] == tokens[-1] == vocab.index("[SEP]")
            assert kept_candidate == full_candidate[: len(kept_candidate)]
            if len(full_text) + len(full_candidate) <= room:
                assert (kept_text, kept_candidate) == (full_text, full_candidate)
            else:
                assert len(tokens) == max_seq_length
                assert len(kept_text) >= min(len(full_text), -(-room // 2))
                assert len(kept_candidate) >= min(len(full_candidate), room // 2)
            ok = bool(encoded.ok[i])
            assert ok == bool(pieces.ok[i])
            if not ok:
                continue
            first, last = int(pieces.first[i]), int(pieces.last[i])
            start_ps, end_ps = int(encoded.start_ps[i]), int(encoded.end_ps[i])
            assert tokens[start_ps : end_ps + 1] == full_text[first : last + 1]
            # The window is one piece of the text, centred where the ends allow.
            window = first - (start_ps - 1)
            assert kept_text == full_text[window : window + len(kept_text)]
            marked = full_text[first - 1 : first] == [quote]
            margin = int(marked)
            left = start_ps - 1 - margin
            right = first_sep - 1 - end_ps - margin
            assert left >= 0
            assert right >= 0
            if window > 0 and window + len(kept_text) < len(full_text):
                assert right - left in (0, 1)
            if marked:
                assert tokens[start_ps - 1] == tokens[end_ps + 1] == quote

    check()


def test_pairs_share_texts_and_candidates(vocab):
    pairs = encoder(vocab, 12)
    texts = pairs.encode_text(
        tf.constant(["the bank", "a b c d e f g"]),
        tf.constant([4, 4]),
        tf.constant([8, 5]),
    )
    candidates = pairs.encode_candidate(tf.constant(["river", "", "a b c d e f g h"]))
    shared = pairs.assemble(texts, candidates, [1, 0, 1, 0], [2, 2, 0, 1])
    alone = pairs(
        tf.constant(["a b c d e f g", "the bank"] * 2),
        tf.constant([4, 4] * 2),
        tf.constant([5, 8] * 2),
        tf.constant(["a b c d e f g h"] * 2 + ["river", ""]),
    )
    for one, other in zip(shared, alone):
        assert tf.reduce_all(tf.equal(one, other))


ROWS = (["the bank", "北京", ""], [4, 0, 0], [8, 1, 1], ["a place", "", "b"])
START_PS = [2, 1, 0]
LENGTHS = [7, 5, 4]


def test_in_a_function_and_in_tf_data(vocab):
    pairs = encoder(vocab)
    encoded = tf.function(pairs)(*map(tf.constant, ROWS))
    np.testing.assert_array_equal(encoded.start_ps, START_PS)
    np.testing.assert_array_equal(encoded.input_ids.row_lengths(), LENGTHS)
    dataset = tf.data.Dataset.from_tensor_slices(ROWS).batch(2).map(pairs)
    batches = list(dataset)
    assert [b.start_ps.numpy().tolist() for b in batches] == [[2, 1], [0]]
    assert [b.input_ids.row_lengths().numpy().tolist() for b in batches] == [
        [7, 5],
        [4],
    ]


def test_in_a_graph_of_tensorflow_1(vocab):
    pairs = encoder(vocab)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        direct = pairs(*map(tf.constant, ROWS))
        dataset = tf.data.Dataset.from_tensor_slices(ROWS).batch(3).map(pairs)
        mapped = tf.compat.v1.data.make_one_shot_iterator(dataset).get_next()
        for encoded in (direct, mapped):
            start_ps, lengths = session.run(
                [encoded.start_ps, encoded.input_ids.row_lengths()]
            )
            np.testing.assert_array_equal(start_ps, START_PS)
            np.testing.assert_array_equal(lengths, LENGTHS)


def test_no_rows(vocab):
    for marker in ("", '"'):
        strings, numbers = tf.zeros([0], tf.string), tf.zeros([0], tf.int64)
        encoded = encoder(vocab, marker=marker)(strings, numbers, numbers, strings)
        assert encoded.input_ids.shape[0] == 0
        assert encoded.ok.shape == (0,)
