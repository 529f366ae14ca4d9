"""The serving_model: text in equals prepared features in; one vocabulary; no paths."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from tensorflow.core.protobuf import saved_model_pb2

from bert_export.config import FeaturesConfig
from bert_export.corpus.records import BadRecords, Mention
from bert_export.errors import StageError
from bert_export.export import linker_graph, requests, serving_model
from bert_export.export.linker_graph import TrainedLinker
from bert_export.features import records
from bert_export.features.pairs import PairEncoder
from bert_export.features.spec import FeatureSpec
from tests import tiny_text

TOLERANCE = 1e-5

# A text, its mention's first and last offset, a candidate.
Row = tuple[str, int, int, str]

ODD = (
    # One character that becomes several pieces, and several that become one.
    "한국각가\uac01ﬁ…½ßẞΣςİıǆᾳΐ㎏㍿①Ⅷ"
    # Combining marks, composed and not; variation selectors; enclosing keycap.
    "\u0301\u0323\u0345\u093e\u302e\u0e34\u064b\u05b0\ufe0f\u20e3éÅ"
    # Joiners, direction marks, soft hyphen, byte order mark, control characters.
    "\u200d\u200b\u200e\u202e\u202c\u2066\ufeff\u00ad\x00\x01\x1f\x7f\x85\u2028\u2029"
    "\u3000\xa0\t\n\r "
    # Emoji families and skin tones, flags, tags; astral; private; no characters.
    "\ufffd👨👩👧\U0001f3fd\U0001f1e9\U0001f1ea\U00020000\U000e0041\ue000\uffff\U0010ffff"
    "北京银行กาิมبنكאב𐍈𝔘ДосO'\"-.,()[]{}#_`^~"
)
HOSTILE = [
    "",
    " ",
    "\x00",
    "\x00bank\x00",
    "[MASK] bank [SEP] [CLS] [PAD] [UNK]",
    "##bank ##s",
    "👨\u200d👩\u200d👧 bank 🇩🇪 👍🏽",
    "\u202eبنك bank\u202c אב",
    "ΟΔΟΣ ὈΔΥΣΣΕΎΣ ς",
    "Straße ½ kg … ﬁn İstanbul ıI",
    "e\u0301\u0301\u0301\u0301\u0301\u0301 Z̸̡̦A̴L͜G̷O",
    "한국 각 \u1112\u1161\u11ab",
    "x" * 300,
    "é" * 60 + " bank",
    "bank" * 40,
    "bank " * 60,
    "\ufeffbank",
    "北" * 50,
    "a\u2028b\u2029c\x85d",
    "\u200d\u200d\u200d",
    "\uffff\ufdd0\U0010ffff",
    "<script>{{7*7}}%s%n\\x00${jndi}'; DROP TABLE",
]
characters = st.one_of(
    st.sampled_from(ODD),
    st.sampled_from("abcknsuq BAX1"),
    st.characters(exclude_categories=["Cs"]),
)
strings = st.one_of(
    st.text(characters, max_size=12),
    st.lists(st.sampled_from([*HOSTILE, "bank", "river", "the", " "]), max_size=3).map(
        "".join
    ),
)
# Offsets inside the text mostly; outside, reversed or empty at times.
rows = st.tuples(strings, st.integers(-1, 12), st.integers(-2, 12), strings).map(
    lambda row: (row[0], row[1], row[1] + row[2], row[3])
)


@pytest.fixture(scope="module")
def loaded() -> Any:
    return tf.saved_model.load(str(tiny_text.artifact()))


@functools.cache
def encoder_of(features: FeaturesConfig) -> PairEncoder:
    return PairEncoder(tiny_text.TOKENIZER, features)


def prepare(
    features: FeaturesConfig, batch: list[Row]
) -> tuple[np.ndarray, np.ndarray]:
    """Texts prepared as training data are: tf.Examples [n], and which are ok [n]."""
    encoder = encoder_of(features)
    spec = encoder.spec
    encoded = encoder(*inputs(batch).values())
    values = {
        spec.input_ids: encoded.input_ids,
        spec.input_mask: tf.ones_like(encoded.input_ids),
        spec.segment_ids: encoded.segment_ids,
    }
    values.update(zip(spec.span_fields, (encoded.start_ps, encoded.end_ps)))
    return spec.serialize(values).numpy(), encoded.ok.numpy()


def inputs(batch: list[Row]) -> dict[str, tf.Tensor]:
    """Rows as inputs of the text signature."""
    text, start, end, candidate = zip(*batch) if batch else ([],) * 4
    return {
        "text": tf.constant(text, tf.string),
        "mention_start": tf.constant(start, tf.int64),
        "mention_end": tf.constant(end, tf.int64),
        "candidate": tf.constant(candidate, tf.string),
    }


def tensors(spec: Any, examples: Any) -> dict[str, tf.Tensor]:
    """Prepared examples as inputs of the tensors signature."""
    parsed = spec.parse(tf.constant(examples), spec.serving_parsing_spec())
    return {
        name: parsed[name] for name in serving_model.contract(spec)["tensors"]["inputs"]
    }


def assert_same(found: dict[str, tf.Tensor], expected: dict[str, Any]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(
            found[name], value, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name
        )


def check(loaded: Any, batch: list[Row], features: FeaturesConfig) -> None:
    """Texts, and their preparation, through the signatures: the same numbers."""
    text = loaded.signatures["text"]
    examples, ok = prepare(features, batch)
    good = [row for row, is_ok in zip(batch, ok) if is_ok]
    found = text(**inputs(good))
    assert found["score"].shape == [len(good)]
    if good:
        spec = FeatureSpec.from_config(features)
        prepared = examples[ok].tolist()
        assert_same(found, loaded.signatures["tensors"](**tensors(spec, prepared)))
        assert_same(
            found, loaded.signatures["serving_default"](examples=tf.constant(prepared))
        )
    if not ok.all():
        bad = int(np.argmin(ok))
        # The first bad row of its kind is named; alone, it is that one.
        batch = [*good, batch[bad]]
        with pytest.raises(
            tf.errors.InvalidArgumentError, match="the mention"
        ) as caught:
            text(**inputs(batch))
        assert f"[{len(good)}]" in caught.value.message


@hypothesis.settings(max_examples=60)
@hypothesis.given(st.lists(rows, min_size=30, max_size=60))
def test_text_equals_prepared_features(loaded, batch):
    check(loaded, batch, tiny_text.FEATURES)


def test_hostile_strings_at_every_offset(loaded):
    """Every span of the first characters of every hostile string."""
    batch = [
        (text, start, end, HOSTILE[(number + start + end) % len(HOSTILE)])
        for number, text in enumerate(HOSTILE)
        for start in range(min(len(text), 20))
        for end in range(start + 1, min(len(text), 20) + 1)
    ]
    assert len(batch) > 2000
    check(loaded, batch, tiny_text.FEATURES)


def test_text_equals_the_records_of_training(loaded, tmp_path):
    """The whole way that training data take, through files."""
    pairs = tiny_text.pairs()
    texts = {f"e{number}": candidate for number, (_, candidate) in enumerate(pairs)}
    mentions = [
        dataclasses.replace(mention, gold=f"e{number}", candidates=tuple(texts))
        for number, (mention, _) in enumerate(pairs)
    ]
    encoder = PairEncoder(tiny_text.TOKENIZER, tiny_text.FEATURES)
    written = records.write_split(
        mentions, texts, encoder, tmp_path, "test", "f", 2, BadRecords(0), False
    )
    examples = tf.data.TFRecordDataset([str(file) for file in written.files])
    examples = list(examples.as_numpy_iterator())
    assert len(examples) == len(pairs) ** 2
    batch = [
        (mention.text, mention.start, mention.end, candidate)
        for mention in mentions
        for candidate in texts.values()
    ]
    found = loaded.signatures["text"](**inputs(batch))
    expected = loaded.signatures["serving_default"](examples=tf.constant(examples))
    assert_same(found, expected)
    # Offsets, candidates and contexts all matter, else this would prove nothing.
    assert len(np.unique(np.round(found["score"], 4))) > len(batch) // 2


def link(loaded: Any, text: str, start: int, end: int, candidates: list[str]) -> Any:
    return loaded.signatures["link"](
        text=tf.constant(text),
        mention_start=tf.constant(start, tf.int64),
        mention_end=tf.constant(end, tf.int64),
        candidates=tf.constant(candidates, tf.string),
    )


@hypothesis.settings(max_examples=25)
@hypothesis.given(st.sampled_from(tiny_text.pairs()), st.lists(strings, max_size=40))
def test_link_is_a_softmax_over_the_candidates(loaded, pair, candidates):
    mention, _ = pair
    found = link(loaded, mention.text, mention.start, mention.end, candidates)
    scored = loaded.signatures["text"](
        **inputs([(mention.text, mention.start, mention.end, c) for c in candidates])
    )
    probability = scored["probabilities"][:, 1].numpy()
    assert_same(
        found,
        {
            "score": scored["score"],
            "link_probability": probability,
            "probabilities": tf.nn.softmax(scored["score"]),
            "nil_probability": 1 - max([0.0, *probability]),
        },
    )


def test_link_without_candidates_is_nil(loaded):
    found = link(loaded, "the bank", 4, 8, [])
    assert found["nil_probability"] == 1.0
    for name in ("probabilities", "link_probability", "score"):
        assert found[name].shape == [0]
    with pytest.raises(tf.errors.InvalidArgumentError, match="must lie in its text"):
        link(loaded, "the bank", 4, 9, [])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("bank", -1, 2, "x"), r"must lie in its text.*\[1\] \[-1\] \[2\] \[4\]"),
        # Five code points, though more bytes and UTF-16 units.
        (("a 👨 é", 2, 6, "x"), r"must lie in its text.*\[1\] \[2\] \[6\] \[5\]"),
        (("bank", 2, 2, "x"), r"must lie in its text.*\[1\] \[2\] \[2\] \[4\]"),
        (("bank", 3, 2, "x"), r"must lie in its text.*\[1\] \[3\] \[2\] \[4\]"),
        (("bank", 0, 1 << 33, "x"), r"must lie in its text"),
        (("a \u200d\x00 b", 2, 4, "x"), r"no word piece.*\[1\] \[2\] \[4\]"),
        (("a " * 10, 0, 20, "x"), r"more word pieces than the 9 .*\[1\] \[10\]"),
        ((b"a\xff", 0, 1, "x"), r"text must be UTF-8; row:\] \[1\]"),
        ((b"a\xed\xa0\x80", 0, 1, "x"), r"text must be UTF-8; row:\] \[1\]"),
        (("a", 0, 1, b"\xe4\xb8"), r"candidate must be UTF-8; row:\] \[1\]"),
    ],
)
def test_bad_rows_are_named(loaded, row, message):
    good = ("the bank", 4, 8, "a place")
    text = loaded.signatures["text"]
    alone = text(**inputs([good]))
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        text(**inputs([good, row, good]))
    assert_same(text(**inputs([good])), alone)


@pytest.mark.parametrize("name", ["text", "mention_start", "mention_end", "candidate"])
def test_inputs_of_different_lengths(loaded, name):
    batch = inputs([("the bank", 4, 8, "a place")] * 3)
    for wrong in (batch[name][:1], batch[name][:0]):
        with pytest.raises(
            tf.errors.InvalidArgumentError, match="must have one length"
        ):
            loaded.signatures["text"](**{**batch, name: wrong})


def write(model: TrainedLinker, directory: Path, precision: str = "float32") -> Any:
    directory.mkdir()
    serving_model.write(model, directory, precision, [])
    return tf.saved_model.load(str(directory))


@pytest.mark.parametrize(
    "features",
    [
        dataclasses.replace(tiny_text.FEATURES, mention_marker='"'),
        dataclasses.replace(tiny_text.FEATURES, lower_case=False),
        dataclasses.replace(
            tiny_text.FEATURES,
            span_fields=(),
            input_ids="ids",
            input_mask="mask",
            segment_ids="Segments",
        ),
    ],
    ids=["marker", "cased", "no_spans"],
)
def test_other_features(tmp_path, features):
    model = tiny_text.linker(tmp_path, features)
    loaded = write(model, tmp_path / "artifact")
    batch = [
        (mention.text, mention.start, mention.end, candidate)
        for mention, candidate in tiny_text.pairs()
    ]
    bad = [("bank", 2, 9, "x"), ("a " * 8, 0, 16, "x"), (" bank ", 0, 1, "")]
    check(loaded, [*batch, *bad], features)
    found = link(loaded, *batch[0][:3], [candidate for *_, candidate in batch])
    scores = loaded.signatures["text"](
        **inputs([(*batch[0][:3], candidate) for *_, candidate in batch])
    )["score"]
    np.testing.assert_allclose(found["score"], scores, atol=TOLERANCE)
    if not features.span_fields:
        # The mention matters to nothing but the cut.
        short, long = "the bank of the river", "the bank of " * 9 + "the river"
        batch = [(short, 4, 8, "x"), (short, 16, 21, "x")]
        batch += [(long, 4, 8, "x"), (long, 100, 101, "x")]
        scores = loaded.signatures["text"](**inputs(batch))["score"].numpy()
        assert abs(scores[0] - scores[1]) < TOLERANCE
        assert abs(scores[2] - scores[3]) > 1e-3


@pytest.mark.parametrize(
    "name", ["input.ids", "input ids", "词", "class", "self", "_x"]
)
def test_feature_names_that_no_argument_can_have(tmp_path, name):
    features = dataclasses.replace(tiny_text.FEATURES, input_ids=name)
    model = dataclasses.replace(tiny_text.shared(), features=features)
    with pytest.raises(StageError, match="cannot name an argument"):
        serving_model.write(model, tmp_path, "float32", [])
    assert not list(tmp_path.iterdir())


def test_files_and_variables():
    artifact = tiny_text.artifact()
    vocab = "".join(f"{piece}\n" for piece in tiny_text.VOCAB).encode()
    assert (artifact / "assets" / "vocab.txt").read_bytes() == vocab
    data = (artifact / "saved_model.pb").read_bytes()
    saved = saved_model_pb2.SavedModel.FromString(data)
    (asset,) = saved.meta_graphs[0].asset_file_def
    assert asset.filename == "vocab.txt"
    reader = tf.train.load_checkpoint(tiny_text.shared().checkpoint)
    expected = set(reader.get_variable_to_shape_map()) - {"global_step"}
    nodes = saved.meta_graphs[0].object_graph_def.nodes
    variables = [node.variable for node in nodes if node.HasField("variable")]
    assert {variable.name for variable in variables} == expected
    assert not any(variable.trainable for variable in variables)


def test_no_path_of_the_exporting_machine():
    artifact = tiny_text.artifact()
    where = [artifact.parent, Path.cwd(), Path.home(), Path(tempfile.gettempdir())]
    files = [path for path in artifact.rglob("*") if path.is_file()]
    assert len(files) >= 8
    for path in files:
        data = path.read_bytes()
        for directory in where:
            assert f"{directory}/".encode() not in data, path


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_storage(tmp_path, loaded, precision):
    model = tiny_text.shared()
    artifact = tmp_path / "artifact"
    half = write(model, artifact, precision)
    stored = tf.train.load_checkpoint(str(artifact / "variables" / "variables"))
    trained = tf.train.load_checkpoint(model.checkpoint)
    numbers = {"float32": 0, precision: 0}
    shapes = stored.get_variable_to_shape_map()
    for name, dtype in stored.get_variable_to_dtype_map().items():
        if dtype.is_floating:
            numbers[dtype.name] += int(np.prod(shapes[name]))
            assert len(shapes[name]) == 1 or dtype.name == precision or "head" in name
    matrices = sum(
        int(np.prod(shape))
        for name, shape in trained.get_variable_to_shape_map().items()
        if len(shape) == 2 and name != "linker/kernel"
    )
    assert numbers[precision] == matrices

    batch = [
        (mention.text, mention.start, mention.end, candidate)
        for mention, candidate in tiny_text.pairs()
    ]
    check(half, batch, tiny_text.FEATURES)
    found = half.signatures["text"](**inputs(batch))
    # It is the model with rounded weights, computed in float32.
    dtype = tf.as_dtype(precision)
    expected = rounded(model, tmp_path, dtype).signatures["text"](**inputs(batch))
    assert_same(found, expected)
    full = loaded.signatures["text"](**inputs(batch))
    difference = np.abs(found["probabilities"] - full["probabilities"]).max()
    assert 1e-6 < difference < (0.1 if precision == "bfloat16" else 0.02)


def rounded(model: TrainedLinker, directory: Path, dtype: tf.DType) -> Any:
    """The float32 artifact of the model with its encoder's matrices rounded."""

    def change(name: str, value: np.ndarray) -> np.ndarray:
        if value.ndim < 2 or name == "linker/kernel":
            return value
        return value.astype(dtype.as_numpy_dtype).astype(np.float32)

    changed = with_weights(model, directory / "rounded", change)
    return write(changed, directory / "rounded_artifact")


def with_weights(model: TrainedLinker, directory: Path, change: Any) -> TrainedLinker:
    """The model with other weights: `change(name, value)` of each variable."""
    directory.mkdir()
    prefix = str(directory / "model.ckpt")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        saver = linker_graph.build(model, checked=False)
        saver.restore(session, model.checkpoint)
        for variable in tf.compat.v1.global_variables():
            value = change(variable.op.name, session.run(variable))
            variable.load(value, session)
        saver.save(session, prefix)
    return dataclasses.replace(model, checkpoint=prefix)


def test_weights_beyond_float16(tmp_path):
    name = "bert/encoder/layer_0/intermediate/dense/kernel"
    model = with_weights(
        tiny_text.shared(),
        tmp_path / "large",
        lambda other, value: value * 1e6 if other == name else value,
    )
    with pytest.raises(StageError, match=rf"{name} has numbers up to .*float16"):
        serving_model.write(model, tmp_path, "float16", [])
    assert [path.name for path in tmp_path.iterdir()] == ["large"]


def test_no_rows(loaded):
    found = loaded.signatures["text"](**inputs([]))
    assert found["probabilities"].shape == [0, 2]
    assert found["score"].shape == [0]


def test_golden_texts_leave_out_what_training_left_out():
    model = tiny_text.shared()
    bad = (Mention("a  b", 1, 3, None, None), "x")
    pairs = tiny_text.pairs()[:2]
    encoder = PairEncoder(tiny_text.TOKENIZER, tiny_text.FEATURES)
    source = tiny_text.estimator(model)
    golden = requests.record_golden_texts(
        source, model.checkpoint, [pairs[0], bad, pairs[1]], encoder, model.spec
    )
    assert [request["candidate"] for request in golden["requests"]] == [
        candidate for _, candidate in pairs
    ]
    with pytest.raises(StageError, match="no example"):
        requests.record_golden_texts(
            source, model.checkpoint, [bad], encoder, model.spec
        )
