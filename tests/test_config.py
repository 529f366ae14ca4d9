"""The config's schema: what it refuses, in which words, and its JSON round trip."""

from __future__ import annotations

import dataclasses
import json
import typing

import pytest

from bert_export.config import (
    PRECISIONS,
    Config,
    CorpusConfig,
    ExportConfig,
    Target,
    check_key,
    default_config,
    export_targets,
    read_json,
    resolve,
)
from bert_export.errors import UserError

# What the defaults alone lack.
NEEDED = {
    "corpus": {"entities": "entities.jsonl", "mentions": "mentions.jsonl"},
    "model": {"pretrained": "bert"},
}


def values(**changed):
    """Good values, with `group__key=value` changed or `group=value` replaced."""
    result = json.loads(json.dumps(NEEDED))
    for path, value in changed.items():
        *groups, key = path.split("__")
        node = result
        for group in groups:
            node = node.setdefault(group, {})
        node[key] = value
    return result


def message(changed):
    with pytest.raises(UserError) as caught:
        resolve(values(**changed))
    text = str(caught.value)
    assert "\n" not in text
    return text


def leaves(node, prefix=""):
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


def test_a_config_of_before_there_was_a_choice_of_tokenizers():
    values = json.loads(resolve(NEEDED).to_json())
    for key in ("tokenizer", "cls_token", "sep_token", "pad_token", "unk_token"):
        del values["features"][key]
    assert resolve(values) == resolve(NEEDED)


def test_what_is_needed_is_enough():
    config = resolve(NEEDED)
    assert config.corpus.entities == "entities.jsonl"
    assert config.train == Config().train


@pytest.mark.parametrize(
    ("changed", "key", "hint"),
    [
        ({"trian": {}}, "config.trian", "did you mean train?"),
        ({"train__lernin_rate": 1.0}, "config.train.lernin_rate", "learning_rate?"),
        ({"export__zzzz": 1}, "config.export.zzzz", "known: dir, formats"),
        ({"train": 3}, "config.train", "expected a group of options, found 3"),
        ({"train": None}, "config.train", "expected a group of options, found None"),
    ],
)
def test_unknown_keys_are_named_with_a_hint(changed, key, hint):
    text = message(changed)
    assert text.startswith(f"{key}: ")
    assert hint in text


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"name": 3}, "config.name: expected str, found 3"),
        ({"corpus__entities": 3}, "config.corpus.entities: expected str, found 3"),
        ({"train__seed": True}, "config.train.seed: expected int, found True"),
        ({"train__seed": 1.0}, "config.train.seed: expected int, found 1.0"),
        ({"train__seed": None}, "config.train.seed: expected int, found None"),
        ({"train__max_steps": "5"}, "config.train.max_steps: expected int, found '5'"),
        ({"train__bfloat16": 1}, "config.train.bfloat16: expected bool, found 1"),
        ({"train__epochs": "3"}, "config.train.epochs: expected float, found '3'"),
        ({"train__epochs": True}, "config.train.epochs: expected float, found True"),
        ({"train__loss": ["listwise"]}, "config.train.loss: expected str, found ["),
        (
            {"features__span_fields": "start_ps"},
            "config.features.span_fields: expected a list of strings, found 'start_ps'",
        ),
        (
            {"features__span_fields": ["start_ps", 3]},
            "config.features.span_fields: expected a list of strings, found ['start",
        ),
    ],
)
def test_a_wrong_type_is_named(changed, expected):
    assert message(changed).startswith(expected)


@pytest.mark.parametrize(
    "changed",
    [
        {"name": ""},
        {"name": "a/b"},
        {"corpus__builder": "csv"},
        {"corpus__entities": None},
        {"corpus__mentions": ""},
        {"corpus__max_candidates": 0},
        {"corpus__max_bad_records": -1},
        {"corpus__dev_fraction": -0.1},
        {"corpus__dev_fraction": float("nan")},
        {"corpus__test_fraction": 1.0},
        {"features__max_seq_length": 7},
        {"features__span_fields": ["start_ps"]},
        {"features__candidate_fields": []},
        {"features__candidate_fields": ["id"]},
        {"features__num_shards": 0},
        {"features__tokenizer": "bpe"},
        {"features__cls_token": ""},
        {"features__unk_token": "[PAD]"},
        {"features__sep_token": "sep"},
        {"model__bert_config": None, "model__pretrained": None},
        {"train__loss": "hinge"},
        {"train__pointwise_weight": -0.1},
        {"train__pointwise_weight": float("inf")},
        {"train__epochs": 0.0},
        {"train__epochs": float("inf")},
        {"train__max_steps": 0},
        {"train__mentions_per_batch": 0},
        {"train__learning_rate": 0.0},
        {"train__learning_rate": float("nan")},
        {"train__warmup_fraction": 1.0},
        {"train__weight_decay": -1.0},
        {"train__weight_decay": float("inf")},
        {"train__clip_norm": 0.0},
        {"train__clip_norm": float("inf")},
        {"train__seed": -1},
        {"train__shuffle_mentions": 0},
        {"train__save_checkpoints_steps": 0},
        {"train__keep_checkpoint_max": 0},
        {"train__average_checkpoints": 0},
        {"train__average_checkpoints": 4},
        {"train__log_steps": 0},
        {"eval__mentions_per_batch": 0},
        {"eval__checkpoint_mentions": 0},
        {"eval__max_mentions": 0},
        {"eval__split": "train"},
        {"export__golden_requests": 0},
        {"export__warmup_requests": -1},
        {"export__warmup_requests": 1001},
    ],
    ids=str,
)
def test_an_impossible_value_is_named(changed):
    path, value = next(iter(changed.items()))
    text = message(changed)
    assert text.startswith(f"config.{path.replace('__', '.')}: expected ")
    found = tuple(value) if isinstance(value, list) else value
    assert text.endswith(f"found {found!r}")


def test_vocabulary_is_needed_without_pretrained_weights():
    text = message({"model": {"bert_config": "bert_config.json"}})
    assert text.startswith("config.model.vocab: expected a file's path")
    resolve(values(model={"bert_config": "bert_config.json", "vocab": "vocab.txt"}))


def test_wordnet_needs_no_files():
    resolve(values(corpus={"builder": "wordnet"}))


def test_fractions_leave_something_to_train_on():
    text = message({"corpus__dev_fraction": 0.5, "corpus__test_fraction": 0.5})
    assert text.startswith("config.corpus.dev_fraction: expected less than 1 together")


@pytest.mark.parametrize(
    "changed",
    [
        {"features__input_ids": "input_mask"},
        {"features__span_fields": ["start_ps", "start_ps"]},
        {"features__label_ids": "mention_id"},
        {"features__segment_ids": ""},
    ],
    ids=str,
)
def test_feature_names_must_differ(changed):
    text = message(changed)
    assert text.startswith("config.features: expected feature names that differ")


def test_integers_are_numbers():
    epochs = resolve(values(train__epochs=2)).train.epochs
    assert epochs == 2.0
    assert type(epochs) is float


def test_lists_become_tuples_and_unset_stays_unset():
    config = resolve(values(features__span_fields=[], train__max_steps=None))
    assert config.features.span_fields == ()
    assert config.train.max_steps is None


def test_json_round_trip(tmp_path):
    config = resolve(
        values(
            name="linker-1.2_b",
            corpus__entities="Entitäten 实体.jsonl",
            train__max_steps=7,
            train__learning_rate=1 / 3,
            features__span_fields=["a", "b"],
        )
    )
    path = tmp_path / "config.json"
    path.write_text(config.to_json(), encoding="utf-8")
    again = resolve(read_json(path))
    assert again == config
    assert again.to_json() == config.to_json()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot read"),
        ("{", "is not JSON"),
        ("[]", "must hold a JSON object"),
    ],
)
def test_broken_json_is_named(tmp_path, content, expected):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=expected) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_defaults_are_those_of_the_schema():
    config = default_config()
    config.corpus.update(NEEDED["corpus"])
    config.model.update(NEEDED["model"])
    assert resolve(config) == resolve(NEEDED)


def test_every_option_has_its_path():
    for path, _ in leaves(Config()):
        check_key(path)


def test_default_config_is_locked_and_typed():
    config = default_config()
    with pytest.raises(AttributeError, match="learning_rate"):
        config.train.lerning_rate = 1.0
    with pytest.raises(AttributeError, match="locked"):
        config.trainer = {}
    with pytest.raises(TypeError, match="seed"):
        config.train.seed = "17"
    with pytest.raises(TypeError, match="max_steps"):
        config.train.max_steps = "17"


def test_unset_options_of_default_config_can_be_set():
    config = default_config()
    unset = [path for path, value in leaves(Config()) if value is None]
    assert "train.max_steps" in unset
    assert "corpus.entities" in unset
    for path in unset:
        group, key = path.split(".")
        assert config[group][key] is None
        hints = typing.get_type_hints(type(getattr(Config(), group)))
        new = 5 if hints[key] == int | None else "a"
        setattr(config[group], key, new)
        assert config.to_dict()[group][key] == new


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CorpusConfig().builder = "wordnet"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("train.lernin_rate", "config.train.lernin_rate: unknown key; did you mean le"),
        ("trainn.seed", "config.trainn: unknown key; did you mean train?"),
        ("train", "config.train: a group; set one of its options: do_train, loss"),
        ("train.seed.low", "config.train.seed.low: unknown key"),
        ("", "config.: unknown key"),
    ],
)
def test_check_key(path, expected):
    with pytest.raises(UserError) as caught:
        check_key(path)
    assert str(caught.value).startswith(expected)


def test_formats_with_and_without_a_precision():
    targets = export_targets(
        ExportConfig(
            formats=("onnx", "saved_model/float32", "onnx/float16", "openvino"),
            precision="int8_dynamic",
        )
    )
    assert targets == [
        Target("onnx", "int8_dynamic"),
        Target("saved_model", "float32"),
        Target("onnx", "float16"),
        Target("openvino", "int8_dynamic"),
    ]
    assert [target.name for target in targets] == [
        "onnx_int8_dynamic",
        "saved_model",
        "onnx_float16",
        "openvino_int8_dynamic",
    ]
    # The same artifact named twice is written once.
    twice = ExportConfig(formats=("onnx", "onnx/float32"))
    assert export_targets(twice) == [Target("onnx", "float32")]


def test_every_format_has_float32_and_names_of_its_own():
    names = [
        Target(format_name, precision).name
        for format_name, precisions in PRECISIONS.items()
        for precision in precisions
    ]
    assert len(set(names)) == len(names)
    assert set(PRECISIONS) <= set(names)


def test_lists_may_be_separated_by_commas():
    config = resolve(values(export__formats=["onnx/float16, tflite", "saved_model,"]))
    assert config.export.formats == ("onnx/float16", "tflite", "saved_model")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (
            {"export__formats": ["onxx"]},
            "config.export.formats: unknown format 'onxx'; did you mean onnx? Known: ",
        ),
        (
            {"export__formats": ["onnx/int4"]},
            "config.export.formats: onnx is written in float32, float16, int8_dynamic, "
            "int8_calibrated, found 'int4'",
        ),
        (
            {"export__precision": "int8_dynamic"},
            "config.export.precision: saved_model is written in float32, found "
            "'int8_dynamic'",
        ),
        ({"export__formats": []}, "config.export.formats: expected a format or more"),
        ({"export__formats": ["/float32"]}, "config.export.formats: unknown format ''"),
        ({"export__max_accuracy_drop": -0.1}, "config.export.max_accuracy_drop: "),
        ({"export__max_accuracy_drop": float("nan")}, "config.export.max_accuracy_dro"),
        ({"export__proof_mentions": 0}, "config.export.proof_mentions: expected 1 or"),
        ({"export__calibration_requests": 0}, "config.export.calibration_requests: "),
    ],
)
def test_impossible_formats(changed, expected):
    assert message(changed).startswith(expected)
