"""The tables of names: every one in both directions, and what stands before names."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bert_export.modeling import layouts
from bert_export.modeling.layouts import LAYOUTS, Transform

SAME, TRANSPOSED = Transform.SAME, Transform.TRANSPOSED
LAST, FIRST = Transform.HEADS_LAST, Transform.HEADS_FIRST
NUMBERS = {"n": 11, "g": 2, "i": 1}


def our_names(layout: str) -> list[str]:
    """All that a layout can name, with numbers filled in."""
    return sorted(
        {
            (ours + here).format(**NUMBERS)
            for _, ours, kind in LAYOUTS[layout]
            for _, here, _ in kind
        }
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back(layout: str):
    names = our_names(layout)
    theirs = {layouts.from_ours(layout, name): name for name in names}
    assert len(theirs) == len(names)
    for (there, transform), name in theirs.items():
        assert layouts.to_ours(layout, there) == (name, transform)
        assert layouts.from_ours(layout, name) == (there, transform)
        assert "{" not in there + name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_recognized_by_its_names(layout: str):
    names = [layouts.from_ours(layout, name)[0] for name in our_names(layout)]
    assert layouts.recognize(names) == layout
    assert layouts.recognize([*names, "cls/predictions", "step"]) == layout
    word_embeddings, _ = layouts.from_ours(layout, layouts.WORD_EMBEDDINGS)
    names.remove(word_embeddings)
    assert layouts.recognize(names) is None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ours_are_googles(layout: str):
    for name in our_names(layout):
        assert layouts.to_ours("google", name) == (name, SAME)


def bert_layer(number: int) -> set[str]:
    parts = (
        ("attention/self/query", ("kernel", "bias")),
        ("attention/self/key", ("kernel", "bias")),
        ("attention/self/value", ("kernel", "bias")),
        ("attention/output/dense", ("kernel", "bias")),
        ("attention/output/LayerNorm", ("gamma", "beta")),
        ("intermediate/dense", ("kernel", "bias")),
        ("output/dense", ("kernel", "bias")),
        ("output/LayerNorm", ("gamma", "beta")),
    )
    prefix = f"bert/encoder/layer_{number}"
    return {f"{prefix}/{part}/{t}" for part, tensors in parts for t in tensors}


@pytest.mark.parametrize(
    "layout",
    [name for name in LAYOUTS if not name.endswith("albert")],
)
def test_layers_are_whole(layout: str):
    assert bert_layer(NUMBERS["n"]) <= set(our_names(layout))


@pytest.mark.parametrize(
    ("layout", "theirs", "ours", "transform"),
    [
        (
            "google",
            "bert/encoder/layer_3/output/dense/kernel",
            "bert/encoder/layer_3/output/dense/kernel",
            SAME,
        ),
        (
            "google",
            "bert/encoder/transformer/group_0/inner_group_0/LayerNorm_1/beta",
            "bert/encoder/transformer/group_0/inner_group_0/LayerNorm_1/beta",
            SAME,
        ),
        (
            "huggingface_bert",
            "embeddings.word_embeddings.weight",
            "bert/embeddings/word_embeddings",
            SAME,
        ),
        (
            "huggingface_bert",
            "encoder.layer.10.attention.self.key.weight",
            "bert/encoder/layer_10/attention/self/key/kernel",
            TRANSPOSED,
        ),
        ("huggingface_bert", "pooler.dense.bias", "bert/pooler/dense/bias", SAME),
        (
            "huggingface_electra",
            "embeddings_project.weight",
            "bert/embeddings_project/kernel",
            TRANSPOSED,
        ),
        (
            "huggingface_albert",
            "encoder.embedding_hidden_mapping_in.weight",
            "bert/encoder/embedding_hidden_mapping_in/kernel",
            TRANSPOSED,
        ),
        (
            "huggingface_albert",
            "encoder.albert_layer_groups.1.albert_layers.0.ffn_output.weight",
            "bert/encoder/transformer/group_1/inner_group_0/ffn_1/intermediate/output"
            "/dense/kernel",
            TRANSPOSED,
        ),
        (
            "huggingface_albert",
            "encoder.albert_layer_groups.0.albert_layers.0.attention.LayerNorm.weight",
            "bert/encoder/transformer/group_0/inner_group_0/LayerNorm/gamma",
            SAME,
        ),
        (
            "huggingface_distilbert",
            "transformer.layer.5.sa_layer_norm.bias",
            "bert/encoder/layer_5/attention/output/LayerNorm/beta",
            SAME,
        ),
        (
            "hub_tf2",
            "transformer/layer_0/self_attention/query/bias",
            "bert/encoder/layer_0/attention/self/query/bias",
            LAST,
        ),
        (
            "hub_tf2",
            "transformer/layer_0/self_attention/attention_output/kernel",
            "bert/encoder/layer_0/attention/output/dense/kernel",
            FIRST,
        ),
        (
            "hub_tf2_albert",
            "transformer/self_attention/attention_output/kernel",
            "bert/encoder/transformer/group_0/inner_group_0/attention_1/output/dense"
            "/kernel",
            FIRST,
        ),
        (
            "hub_tf2",
            "word_embeddings/embeddings",
            "bert/embeddings/word_embeddings",
            SAME,
        ),
    ],
)
def test_names(layout: str, theirs: str, ours: str, transform: Transform):
    assert layouts.to_ours(layout, theirs) == (ours, transform)
    assert layouts.from_ours(layout, ours) == (theirs, transform)


@pytest.mark.parametrize(
    ("layout", "prefixes", "name"),
    [
        (
            "google",
            ("", "bert/", "module/", "module/bert/", "electra/"),
            "embeddings/LayerNorm/gamma",
        ),
        ("huggingface_bert", ("", "bert."), "embeddings.LayerNorm.gamma"),
        (
            "huggingface_electra",
            ("", "electra.", "discriminator.", "discriminator.electra."),
            "embeddings.LayerNorm.weight",
        ),
        ("huggingface_albert", ("", "albert."), "embeddings.LayerNorm.weight"),
        ("huggingface_distilbert", ("", "distilbert."), "embeddings.LayerNorm.weight"),
    ],
)
def test_prefixes(layout: str, prefixes: tuple[str, ...], name: str):
    for prefix in prefixes:
        found = layouts.to_ours(layout, prefix + name)
        assert found == ("bert/embeddings/LayerNorm/gamma", SAME)


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("google", "cls/predictions/transform/dense/kernel"),
        ("google", "bert/encoder/layer_0/output/dense/kernel/adam_m"),
        ("google", "generator/encoder/layer_0/output/dense/kernel"),
        ("google", "discriminator_predictions/dense/kernel"),
        ("google", "bert/encoder/layer_x/output/dense/kernel"),
        ("google", "linker/kernel"),
        ("huggingface_bert", "cls.seq_relationship.weight"),
        ("huggingface_bert", "bert.encoder.layer.0.crossattention.self.key.weight"),
        ("huggingface_bert", "bert.embeddings.position_ids"),
        ("huggingface_electra", "generator_lm_head.weight"),
        ("huggingface_electra", "discriminator_predictions.dense.weight"),
        ("huggingface_distilbert", "vocab_projector.bias"),
    ],
)
def test_what_is_no_weight_of_an_encoder(layout: str, name: str):
    assert layouts.to_ours(layout, name) is None


def test_what_a_layout_has_not():
    for layout, name in (
        ("huggingface_distilbert", "bert/embeddings/token_type_embeddings"),
        ("huggingface_bert", "linker/kernel"),
        ("hub_tf2", "bert/embeddings_project/kernel"),
    ):
        with pytest.raises(KeyError, match=f"{layout} has no {name}"):
            layouts.from_ours(layout, name)


@dataclasses.dataclass(frozen=True)
class Case:
    transform: Transform
    ours: tuple[int, ...]
    theirs: tuple[int, ...]


@pytest.mark.parametrize(
    "case",
    [
        Case(SAME, (5, 6), (5, 6)),
        Case(TRANSPOSED, (5, 6), (6, 5)),
        Case(LAST, (5, 6), (5, 2, 3)),
        Case(LAST, (6,), (2, 3)),
        Case(FIRST, (6, 5), (2, 3, 5)),
    ],
)
def test_transforms_undo_each_other(case: Case):
    ours = np.arange(np.prod(case.ours), dtype=np.float32).reshape(case.ours)
    theirs = case.transform.from_ours(ours, heads=2)
    assert theirs.shape == case.theirs
    assert case.transform.our_shape(case.theirs) == case.ours
    np.testing.assert_array_equal(case.transform.to_ours(theirs), ours)


def test_heads_are_apart_as_einsum_takes_them():
    """x @ kernel, split into heads, is Keras's `abc,cde->abde` with theirs."""
    rng = np.random.default_rng(0)
    kernel, x = rng.normal(size=(6, 6)), rng.normal(size=(4, 3, 6))
    query = LAST.from_ours(kernel, heads=2)
    np.testing.assert_allclose(
        np.einsum("abc,cde->abde", x, query), (x @ kernel).reshape(4, 3, 2, 3)
    )
    output = FIRST.from_ours(kernel, heads=2)
    context = x.reshape(4, 3, 2, 3)
    np.testing.assert_allclose(
        np.einsum("abcd,cde->abe", context, output), x @ kernel, atol=1e-12
    )


@pytest.mark.parametrize("transform", Transform)
def test_tensors_of_another_rank_keep_a_shape_that_will_not_fit(transform: Transform):
    assert transform.our_shape((7,)) == (7,)
    assert transform.our_shape(()) == ()
    assert transform.to_ours(np.zeros(7)).shape == (7,)
