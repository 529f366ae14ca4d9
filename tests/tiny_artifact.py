"""A real artifact of a tiny BERT, made with the product's own functions."""

from __future__ import annotations

import dataclasses
import functools
import random
import tempfile
from pathlib import Path
from typing import Any

import tensorflow as tf

from bert_export.config import Config, FeaturesConfig, TrainConfig
from bert_export.export import requests, saved_model
from bert_export.features.spec import FeatureSpec
from bert_export.features.tokenizer import WordPiece
from bert_export.modeling.bert_config import BertConfig
from bert_export.release import manifest
from bert_export.training import estimator as training
from bert_export.training.model_fn import ModelParams

NAME = "tiny"
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{n}" for n in range(60))]
TOKENIZER = WordPiece(VOCAB)
BERT = BertConfig(
    vocab_size=len(VOCAB),
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=24,
    # Larger than usual: an untrained model's scores differ visibly.
    initializer_range=0.5,
)


@dataclasses.dataclass(frozen=True)
class Trained:
    """An Estimator with a checkpoint, and requests for it."""

    estimator: Any
    checkpoint: str
    spec: FeatureSpec
    examples: list[bytes]
    vocab: Path


def make_examples(spec: FeatureSpec, count: int, label: bool = True) -> list[bytes]:
    """Serialized examples of 4 tokens to max_seq_length, unpadded."""
    rng = random.Random(3)
    examples = []
    for number in range(count):
        length = spec.max_seq_length if number == 1 else rng.randint(4, 17)
        second = rng.randint(2, length - 1)
        values: dict[str, Any] = {
            spec.input_ids: [rng.randrange(len(VOCAB)) for _ in range(length)],
            spec.input_mask: [1] * length,
            spec.segment_ids: [int(index >= second) for index in range(length)],
        }
        span = sorted(rng.randrange(length) for _ in range(2))
        values.update(zip(spec.span_fields, span))
        if label:
            values[spec.label_ids] = rng.randrange(2)
        examples.append(spec.encode_example(values))
    return examples


def train(
    directory: Path,
    features: FeaturesConfig | None = None,
    seed: int = 17,
    use_tpu: bool = False,
    bert: BertConfig = BERT,
) -> Trained:
    """Two optimizer steps of a tiny linker with random weights."""
    config = Config(
        features=features or FeaturesConfig(max_seq_length=20),
        train=TrainConfig(seed=seed, use_tpu=use_tpu),
    )
    spec = FeatureSpec.from_config(config.features)
    params = ModelParams(spec, bert, config.train, num_train_steps=2, pretrained=None)
    estimator = training.create_estimator(config, params, directory / "model")
    examples = make_examples(spec, 32)

    def input_fn(params: object = None) -> tf.data.Dataset:
        del params

        def parse(batch: tf.Tensor) -> Any:
            features = spec.parse(batch, spec.parsing_spec())
            label_ids = features.pop(spec.label_ids)
            mentions = tf.cast(tf.range(tf.shape(label_ids)[0]) // 4, tf.int64)
            return features, {spec.label_ids: label_ids, "mention_id": mentions}

        return tf.data.Dataset.from_tensor_slices(examples).repeat().batch(8).map(parse)

    estimator.train(input_fn, max_steps=2)
    vocab = directory / "vocab.txt"
    vocab.write_text("".join(f"{piece}\n" for piece in VOCAB), encoding="utf-8")
    checkpoint = training.newest_checkpoint(directory / "model")
    assert checkpoint is not None
    return Trained(estimator, checkpoint, spec, examples, vocab)


def export(trained: Trained, directory: Path) -> Path:
    """Everything that makes an artifact, but its smoke test."""
    directory.mkdir(parents=True, exist_ok=True)
    saved_model.export_saved_model(
        trained.estimator, trained.spec, directory, trained.checkpoint
    )
    saved_model.write_vocab(directory, TOKENIZER)
    golden = requests.record_golden(
        trained.estimator, trained.checkpoint, trained.examples, trained.spec
    )
    requests.write_golden(directory, golden)
    requests.write_warmup(directory, NAME, trained.examples[:3], trained.spec)
    write_manifest(trained, directory)
    return directory


def write_manifest(trained: Trained, directory: Path) -> None:
    """Describes the artifact as it is now."""
    manifest.write(
        directory,
        manifest.build(
            directory,
            name=NAME,
            spec=trained.spec,
            checkpoint_path=trained.checkpoint,
            config={"name": NAME},
            metrics={"link_accuracy": 0.5},
            data_fingerprint="0" * 64,
        ),
    )


@functools.cache
def trained() -> Trained:
    """The tiny model that the tests of a session share."""
    return train(Path(_temporary().name))


@functools.cache
def artifact() -> Path:
    """Its artifact. Copy it before changing anything."""
    return export(trained(), Path(_temporary().name) / "artifact")


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    # Kept until the interpreter ends.
    return tempfile.TemporaryDirectory(prefix="tiny_artifact_")
