"""SentencePiece against the sentencepiece library, and its offsets."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import hypothesis
import numpy as np
import pytest
import sentencepiece
import tensorflow as tf
from hypothesis import strategies as st

from bert_export.config import FeaturesConfig
from bert_export.errors import UserError
from bert_export.features.pairs import PairEncoder
from bert_export.features.sentencepiece import BLANK, SentencePiece, is_model
from bert_export.features.tokenizer import WordPiece, load_tokenizer
from tests import sentencepiece_models
from tests.features.strategies import NORMALIZED, characters, many
from tests.sentencepiece_models import DATA, MODELS, corpus, random_texts, tokenizer

FEATURES = FeaturesConfig(tokenizer="sentencepiece", lower_case=False)
odd_texts = st.text(
    st.one_of(characters, st.sampled_from(NORMALIZED)), min_size=1, max_size=12
)
# Each test runs with several models.
fewer = hypothesis.settings(many, max_examples=50)


@functools.cache
def library(name: str) -> sentencepiece.SentencePieceProcessor:
    model = sentencepiece_models.model(name)
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def utf8(texts: Sequence[str]) -> tf.Tensor:
    return tf.constant([text.encode() for text in texts])


def lowered(text: str) -> str:
    """In lower case, noncharacters replaced as every TensorFlow operation does."""
    return "".join(
        "\ufffd"
        if ord(character) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(character) < 0xFDF0
        else character.lower()[0]
        for character in text
    )


@functools.cache
def many_texts() -> list[str]:
    return [*random_texts(20_000), *corpus()]


@pytest.mark.parametrize("name", MODELS)
def test_ids_are_those_of_the_library(name):
    texts, processor = many_texts(), library(name)
    expected = processor.encode(texts)
    found = tokenizer(name).tokenize(utf8(texts)).to_list()
    assert sum(map(len, found)) > 10 * len(texts) / 2
    different = [i for i, ids in enumerate(found) if ids != expected[i]]
    for i in different:
        # "l" + "ll" or "ll" + "l": the library's versions choose differently between
        # segmentations of one score, and only between these.
        both = (found[i], expected[i])
        scores = [sum(map(processor.get_score, ids)) for ids in both]
        assert scores[0] == pytest.approx(scores[1], rel=1e-6), texts[i]
    assert len(different) <= len(texts) / 5000


def test_lower_case_ids_are_those_of_the_library_for_lower_case():
    texts = random_texts(5000, seed=3)
    expected = library("unigram").encode([lowered(text) for text in texts])
    found = tokenizer("unigram", lower_case=True).tokenize(utf8(texts)).to_list()
    assert found == expected
    assert found != library("unigram").encode(texts)


def ranges_by_the_library(name: str, text: str) -> list[tuple[int, int]]:
    """The source bytes of every piece, from the library's own alignment."""
    processor = library(name)
    normalized, sources = processor.normalize(text.encode(), with_offsets=True)
    added = BLANK.encode() if MODELS[name].get("add_dummy_prefix", True) else b""
    at_end = MODELS[name].get("treat_whitespace_as_suffix", False)
    added_begin = len(normalized) - len(added) if at_end else 0
    ranges = []
    begin = 0
    for piece in processor.encode(text, return_type="proto").pieces:
        is_byte = piece.piece.startswith("<0x") and processor.is_byte(piece.id)
        surface = piece.piece.encode()
        end = begin + (1 if is_byte else len(surface))
        first, stop = begin, end
        if not is_byte:
            assert normalized[begin:end] == surface
        inside = [
            i
            for i in range(begin, end)
            if not added_begin <= i < added_begin + len(added)
        ]
        without = surface.strip(BLANK.encode())
        if not inside:
            edge = len(text.encode()) if at_end else 0
            ranges.append((edge, edge))
        else:
            if without and not is_byte:
                first = begin + surface.index(without)
                stop = first + len(without)
            else:
                first, stop = inside[0], inside[-1] + 1
            source_end = next(
                (s for s in sources[stop:] if s > sources[stop - 1]), sources[-1]
            )
            ranges.append((sources[first], source_end))
        begin = end
    assert begin == len(normalized)
    return ranges


# Functions are fast, and the graph is what artifacts have.
@functools.cache
def traced(name: str) -> tuple[Callable, Callable, Callable]:
    """`tokenize` and `tokenize_with_offsets`, and `encode_text` of pairs."""
    strings = tf.TensorSpec([None], tf.string)
    numbers = tf.TensorSpec([None], tf.int32)
    functions = tokenizer(name).tokenize, tokenizer(name).tokenize_with_offsets
    return (
        *(tf.function(f, input_signature=[strings]) for f in functions),
        tf.function(
            encoder(name).encode_text, input_signature=[strings, numbers, numbers]
        ),
    )


@pytest.fixture(scope="module", autouse=True)
def forget_functions():
    """TensorFlow complains of functions that live until Python ends."""
    yield
    traced.cache_clear()


def found_ranges(name: str, texts: list[str]) -> list[list[tuple[int, int]]]:
    tokenize, tokenize_with_offsets, _ = traced(name)
    ids, starts, ends = tokenize_with_offsets(utf8(texts))
    assert ids.to_list() == tokenize(utf8(texts)).to_list()
    return [
        list(zip(*row, strict=True)) for row in zip(starts.to_list(), ends.to_list())
    ]


@pytest.mark.parametrize("name", MODELS)
def test_offsets_are_those_of_the_library_s_alignment(name):
    texts = [*random_texts(1500, seed=8), *corpus(), ""]
    processor = library(name)
    ids = tokenizer(name).tokenize(utf8(texts)).to_list()
    for text, row, ranges in zip(texts, ids, found_ranges(name, texts)):
        if row == processor.encode(text):
            assert ranges == ranges_by_the_library(name, text), text


@pytest.mark.parametrize("name", MODELS)
def test_offsets_keep_the_rules(name):
    @fewer
    @hypothesis.given(st.lists(odd_texts, min_size=1, max_size=4))
    def check(batch):
        for text, ranges in zip(batch, found_ranges(name, batch)):
            size = len(text.encode())
            borders = {0, *itertools.accumulate(len(c.encode()) for c in text)}
            for start, end in ranges:
                assert 0 <= start <= end <= size
                assert {start, end} <= borders
            for column in zip(*ranges):
                assert list(column) == sorted(column)
            # The blank that was added: one piece at most, at one end of the text.
            empty = [i for i, (start, end) in enumerate(ranges) if start == end]
            assert len(empty) <= 1
            assert set(empty) <= {0, len(ranges) - 1}

    check()


@pytest.mark.parametrize("name", ["unigram", "suffix"])
def test_offsets_in_lower_case(name):
    texts = [*random_texts(500, seed=4), "İSTANBUL ẞ K Å Ⱥ", "  A", "", "A  "]
    lower = SentencePiece(sentencepiece_models.model(name), FeaturesConfig())
    ids, starts, ends = lower.tokenize_with_offsets(utf8(texts))
    assert ids.to_list() == lower.tokenize(utf8(texts)).to_list()
    plain = found_ranges(name, [lowered(text) for text in texts])
    for text, expected, *found in zip(texts, plain, starts.to_list(), ends.to_list()):
        low = [0, *itertools.accumulate(len(lowered(c).encode()) for c in text)]
        high = [0, *itertools.accumulate(len(c.encode()) for c in text)]
        source = dict(zip(low, high))
        assert list(zip(*found)) == [(source[s], source[e]) for s, e in expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # One character that becomes several pieces, alone and behind another.
        ("㌖", [("▁", ""), ("キロ", "㌖"), ("メート", "㌖"), ("ル", "㌖")]),
        ("ﬁsh", [("▁fi", "ﬁ"), ("s", "s"), ("h", "h")]),
        # Several characters that become one.
        ("ｶﾞﾗｽ", [("▁", ""), ("ガラス", "ｶﾞﾗｽ")]),
        ("cafe\u0301", [("▁café", "cafe\u0301")]),
        # White space is in no range but that of a piece of its own.
        ("the \t\u3000bank  ", [("▁the", "the"), ("▁bank", "bank")]),
        ("  北京", [("▁", ""), ("北京", "北京")]),
        ("在 北京", [("▁在", "在"), ("▁", " "), ("北京", "北京")]),
        # ´ becomes a blank and an accent.
        ("a´", [("▁a", "a"), ("▁", "´"), ("[UNK]", "´")]),
    ],
)
def test_offsets_of(text, expected):
    """A model of few pieces, so that where it cuts is plain to see."""
    few = few_pieces(
        *("▁", "▁a", "▁fi", "s", "h", "▁the", "▁bank", "▁café", "▁在", "北京"),
        *("キロ", "メート", "ル", "ガラス"),
    )
    ids, starts, ends = few.tokenize_with_offsets(utf8([text]))
    names = {few.id_of(piece): piece for piece, _ in expected}
    found = [
        (names[index] if index != few.unk_id else "[UNK]", text.encode()[s:e].decode())
        for index, s, e in zip(*(r[0].numpy().tolist() for r in (ids, starts, ends)))
    ]
    assert found == expected


def few_pieces(*pieces: str) -> SentencePiece:
    """A unigram model of the pieces given, with the normalization of a trained one."""
    from bert_export.features.sentencepiece import _parse

    proto = _parse(sentencepiece_models.model())
    del proto.pieces[6:]
    assert [piece.type for piece in proto.pieces] == [2, 3, 3, 3, 3, 3]
    for number, piece in enumerate(pieces):
        proto.pieces.add(piece=piece, score=-1.0 - number / 100)
    return SentencePiece(proto.SerializeToString(), FEATURES)


# --- pairs --------------------------------------------------------------------------


def encoder(name: str, **options: object) -> PairEncoder:
    config = FeaturesConfig(
        tokenizer="sentencepiece", lower_case=False, max_seq_length=128, **options
    )
    return PairEncoder(tokenizer(name), config)


@pytest.mark.parametrize("name", MODELS)
def test_mentions_anywhere(name):
    tokenize, _, encode_text = traced(name)
    room = encoder(name).text_room

    @fewer
    @hypothesis.given(st.lists(odd_texts, min_size=1, max_size=4), st.data())
    def check(batch, data):
        start = [data.draw(st.integers(0, len(text) - 1)) for text in batch]
        end = [data.draw(st.integers(s + 1, len(t))) for s, t in zip(start, batch)]
        found = encode_text(utf8(batch), start, end)
        ids = tokenize(utf8(batch)).to_list()
        for i, text in enumerate(batch):
            hypothesis.assume(ids[i] == library(name).encode(text))
            begin, stop = (len(text[:n].encode()) for n in (start[i], end[i]))
            expected = {
                piece
                for piece, (s, e) in enumerate(ranges_by_the_library(name, text))
                if s < stop and e > begin and s < e
            }
            first, last = int(found.first[i]), int(found.last[i])
            assert set(range(first, last + 1)) == expected
            assert bool(found.ok[i]) == (0 < len(expected) <= room)

    check()


@pytest.mark.parametrize("name", ["unigram", "bpe", "case_folding"])
def test_mentions_of_whole_words(name):
    """The pieces up to a word's end are counted without any offsets.

    These models never cut across white space, and have "▁" as a piece.
    """
    tokenize, _, encode_text = traced(name)
    word = st.text(
        st.one_of(characters, st.sampled_from(NORMALIZED)), min_size=1, max_size=6
    ).filter(lambda text: is_one_word(name, text))

    @fewer
    @hypothesis.given(
        st.lists(st.lists(word, min_size=1, max_size=4), min_size=1, max_size=4),
        st.data(),
    )
    def check(sentences, data):
        rows, before, upto = [], [], []
        for words in sentences:
            i = data.draw(st.integers(0, len(words) - 1))
            j = data.draw(st.integers(i + 1, len(words)))
            before.append(" ".join(words[:i]))
            upto.append(" ".join(words[:j]))
            mention_start = len(before[-1]) + bool(i)
            rows.append((" ".join(words), mention_start, len(upto[-1])))
        text, start, end = zip(*rows)
        found = encode_text(utf8(text), start, end)
        last = tokenize(utf8(upto)).row_lengths().numpy() - 1
        np.testing.assert_array_equal(found.last, last)
        first = tokenize(utf8(before)).row_lengths().numpy()
        for i, ids in enumerate(found.ids.to_list()):
            # A blank of its own before the word is no part of it.
            first[i] += ids[first[i]] == tokenizer(name).id_of(BLANK)
        np.testing.assert_array_equal(found.first, first)

    check()


def is_one_word(name: str, text: str) -> bool:
    """No character of it becomes white space or is dropped."""
    whole, *each = library(name).normalize([f"a{c}" for c in (text, *text)])
    return whole.count(BLANK) == 1 and f"{BLANK}a" not in each


@pytest.mark.parametrize(
    ("marked", "mention"),
    [
        ("⟦the⟧ bank", ["▁the"]),
        ("⟦the ⟧bank", ["▁the"]),
        ("the⟦ bank⟧", ["▁bank"]),
        ("the b⟦an⟧k", ["▁bank"]),
        ("⟦北京⟧", ["北京"]),
        ("  ⟦北京⟧", ["北京"]),
        ("⟦  北京⟧", ["北京"]),
        ("北⟦京⟧", ["北京"]),
        ("⟦㌖⟧", ["キロ", "メート", "ル"]),
        ("ｶ⟦ﾞ⟧ﾗｽ", ["ガラス"]),
        ("caf⟦e⟧\u0301", ["▁café"]),
    ],
)
def test_mention_pieces(marked, mention):
    few = few_pieces(
        *("▁", "▁the", "▁bank", "▁café", "北京", "キロ", "メート", "ル", "ガラス")
    )
    before, surface, after = marked.replace("⟧", "⟦").split("⟦")
    start = len(before)
    pairs = PairEncoder(few, FEATURES)
    encoded = pairs(
        utf8([before + surface + after]),
        tf.constant([start]),
        tf.constant([start + len(surface)]),
        utf8(["the bank"]),
    )
    assert encoded.ok.numpy().all()
    ids = encoded.input_ids[0].numpy().tolist()
    assert ids[0] == few.cls_id
    candidate = [few.id_of("▁the"), few.id_of("▁bank"), few.sep_id]
    assert ids[-4:] == [few.sep_id, *candidate]
    first, last = int(encoded.start_ps[0]), int(encoded.end_ps[0])
    assert ids[first : last + 1] == [few.id_of(piece) for piece in mention]


@pytest.mark.parametrize("marked", ["the⟦ ⟧bank", "the⟦⟧ bank", "the bank⟦  ⟧", "⟦ ⟧"])
def test_mention_without_a_piece(marked):
    before, surface, after = marked.replace("⟧", "⟦").split("⟦")
    text, start = before + surface + after, len(before)
    found = PairEncoder(few_pieces("▁", "▁the", "▁bank"), FEATURES).encode_text(
        utf8([text]), tf.constant([start]), tf.constant([start + len(surface)])
    )
    assert not found.ok.numpy().any()


def test_marker():
    pairs = encoder("symbols", mention_marker="<m>")
    marker = pairs.tokenizer.id_of("<m>")
    encoded = pairs(*map(tf.constant, (["the bank"], [4], [8], ["x"])))
    ids = encoded.input_ids[0].numpy().tolist()
    start, end = int(encoded.start_ps[0]), int(encoded.end_ps[0])
    assert ids[start - 1] == ids[end + 1] == marker
    assert marker not in ids[start : end + 1]
    for unknown in ("<none>", "[UNK]"):
        with pytest.raises(UserError, match=r"features\.mention_marker"):
            encoder("symbols", mention_marker=unknown)


def test_names_of_special_tokens_are_text():
    """Those of control symbols; user-defined ones are found, as by the library."""
    text = "[CLS] <s> [SEP] [PAD] </s> <m>"
    for name in ("unigram", "symbols", "bpe"):
        ids = tokenizer(name).tokenize(utf8([text]))[0].numpy().tolist()
        assert ids == library(name).encode(text)
        assert not any(library(name).is_control(index) for index in ids)
    assert tokenizer("symbols").id_of("<m>") in (
        tokenizer("symbols").tokenize(utf8([text]))[0].numpy()
    )


# --- where it works -----------------------------------------------------------------

ROWS = (["the bank", "北京", ""], [4, 0, 0], [8, 1, 1], ["a place", "", "b"])


def test_in_functions_datasets_and_graphs_of_tensorflow_1():
    pairs = encoder("unigram")
    expected = pairs(*map(tf.constant, ROWS))
    assert expected.ok.numpy().tolist() == [True, True, False]
    traced = tf.function(pairs)(*map(tf.constant, ROWS))
    dataset = tf.data.Dataset.from_tensor_slices(ROWS)
    (mapped,) = dataset.batch(3).map(pairs)
    for encoded in (traced, mapped):
        assert encoded.input_ids.to_list() == expected.input_ids.to_list()
        np.testing.assert_array_equal(encoded.start_ps, expected.start_ps)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        direct = pairs(*map(tf.constant, ROWS))
        dataset = tf.data.Dataset.from_tensor_slices(ROWS).batch(3).map(pairs)
        mapped = tf.compat.v1.data.make_one_shot_iterator(dataset).get_next()
        for encoded in (direct, mapped):
            ids, start_ps = session.run([encoded.input_ids.values, encoded.start_ps])
            np.testing.assert_array_equal(ids, expected.input_ids.values)
            np.testing.assert_array_equal(start_ps, expected.start_ps)


def test_models_side_by_side():
    """In one program, one function and one graph, none takes another's place."""
    names = ("unigram", "bpe", "identity")
    texts = utf8(["㌖ the bank", "北京银行"])
    expected = [library(name).encode(["㌖ the bank", "北京银行"]) for name in names]
    for _ in range(2):
        assert [tokenizer(n).tokenize(texts).to_list() for n in names] == expected
        # Forgets all operations that were run eagerly.
        tf.random.set_seed(1)
    together = tf.function(lambda t: [tokenizer(n).tokenize(t) for n in names])
    assert [ragged.to_list() for ragged in together(texts)] == expected


def test_no_rows():
    strings, numbers = tf.zeros([0], tf.string), tf.zeros([0], tf.int64)
    for lower_case in (False, True):
        pairs = PairEncoder(tokenizer("unigram", lower_case), FEATURES)
        encoded = pairs(strings, numbers, numbers, strings)
        assert encoded.input_ids.shape[0] == 0


# --- bad input ----------------------------------------------------------------------


def test_special_tokens_by_name():
    model = sentencepiece_models.model()
    found = SentencePiece(
        model, FeaturesConfig(cls_token="<s>", sep_token="</s>", pad_token="[PAD]")
    )
    assert (found.unk_id, found.cls_id, found.sep_id) == (0, 1, 2)
    assert found.pad_id == library("unigram").piece_to_id("[PAD]") != 0
    assert found.size == library("unigram").get_piece_size()
    assert found.id_of("[UNK]") is None
    assert found.id_of("▁the") == library("unigram").piece_to_id("▁the")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ({"cls_token": "<cls>"}, r"features\.cls_token: .* no control .*'<cls>'; it "),
        ({"pad_token": "▁the"}, r"features\.pad_token: the model has no control or"),
        ({"unk_token": "<unk>"}, r"features\.unk_token: .* '\[UNK\]', found '<unk>'"),
    ],
)
def test_missing_special_token(tmp_path, tokens, message):
    path = tmp_path / "spiece.model"
    path.write_bytes(sentencepiece_models.model())
    config = FeaturesConfig(tokenizer="sentencepiece", **tokens)
    with pytest.raises(UserError, match=f"spiece.model: {message}"):
        load_tokenizer(path, config)


def test_truncated_models(tmp_path):
    model = sentencepiece_models.model("identity")
    path = tmp_path / "spiece.model"
    for size in [*range(40), *range(40, len(model), 997), len(model) - 1]:
        path.write_bytes(model[:size])
        assert not is_model(model[:size])
        with pytest.raises(UserError, match=r"spiece.model: not a SentencePiece model"):
            load_tokenizer(path, FEATURES)


def test_models_that_the_library_refuses():
    from bert_export.features.sentencepiece import _parse

    proto = _parse(sentencepiece_models.model())
    proto.pieces.add(piece="▁the", score=-3.0)
    with pytest.raises(UserError, match="the SentencePiece model cannot be used: "):
        SentencePiece(proto.SerializeToString(), FEATURES)


def test_the_other_tokenizer_s_file(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes(sentencepiece_models.model())
    with pytest.raises(UserError, match=r"vocab.txt: a SentencePiece model; expected"):
        load_tokenizer(path, FeaturesConfig())
    path = tmp_path / "spiece.model"
    path.write_bytes((DATA / "vocab.txt").read_bytes())
    with pytest.raises(UserError, match=r"spiece.model: not a .* it is text: .*'wordp"):
        load_tokenizer(path, FEATURES)
    with pytest.raises(UserError, match=r"none.model: vocabulary not readable"):
        load_tokenizer(tmp_path / "none.model", FEATURES)


def test_load_tokenizer(tmp_path):
    path = tmp_path / "some.model"
    path.write_bytes(sentencepiece_models.model())
    found = load_tokenizer(path, FEATURES)
    assert isinstance(found, SentencePiece)
    assert (found.file_name, found.content) == ("spiece.model", path.read_bytes())
    other = load_tokenizer(DATA / "vocab.txt", FeaturesConfig())
    assert isinstance(other, WordPiece)
    assert (other.file_name, other.content) == (
        "vocab.txt",
        (DATA / "vocab.txt").read_bytes(),
    )
