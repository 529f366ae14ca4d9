"""Writes models of random weights, the lengths of real requests, and words.

Usage: python make_models.py DIRECTORY RUN CONFIG, a name in configs/; RUN keeps
the prepared corpus for the next time.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import tensorflow as tf
from names import (
    LENGTHS,
    MODEL,
    ONNX,
    ONNX_INT8,
    QUICK_CONFIG,
    SAVED_MODEL,
    SMALL,
    WORDS,
)
from tqdm import tqdm

from bert_export import config_file, pipeline
from bert_export.config import Config, FeaturesConfig, resolve
from bert_export.errors import Failure
from bert_export.export import onnx, serving_model
from bert_export.export.linker_graph import TrainedLinker
from bert_export.features.records import RecordSet
from bert_export.features.tokenizer import WordPiece, load_tokenizer
from bert_export.files import write_json
from bert_export.modeling import weights
from bert_export.modeling.bert_config import BertConfig
from bert_export.modeling.linker import Linker

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
# That of MiniLM-L6; time does not depend on the weights' values.
MINILM = BertConfig(
    vocab_size=30522,
    hidden_size=384,
    num_hidden_layers=6,
    num_attention_heads=12,
    intermediate_size=1536,
    max_position_embeddings=512,
)
TINY = dataclasses.replace(
    MINILM, vocab_size=100, hidden_size=32, num_attention_heads=2, intermediate_size=64
)
LAYERS = (1, 2, 4, 6, 12)
QUICK_LAYERS = (1, 2, 6)
# Mentions of the test split whose pairs' lengths are taken, spread over it.
MENTIONS = 200


def write_models(bert: BertConfig, directory: Path) -> None:
    """Writes DIRECTORY/LAYERS with what `names` says, for one number of layers."""
    directory.mkdir(parents=True)
    features = FeaturesConfig(max_seq_length=bert.max_position_embeddings)
    special = [
        features.pad_token,
        features.unk_token,
        features.cls_token,
        features.sep_token,
    ]
    words = [f"w{number}" for number in range(bert.vocab_size - len(special))]
    tokenizer = WordPiece([*special, *words])
    prefix = write_checkpoint(bert, len(features.span_fields), directory)
    model = TrainedLinker(prefix, bert, features, tokenizer)
    for name, module, precision in (
        (ONNX, onnx, "float32"),
        (ONNX_INT8, onnx, "int8_dynamic"),
        (SAVED_MODEL, serving_model, "float32"),
    ):
        (directory / name).mkdir()
        module.write(model, directory / name, precision, [])
    write_json(
        directory / MODEL,
        {
            "bert": dataclasses.asdict(bert),
            "reads": 1 + len(features.span_fields),
        },
    )


def write_checkpoint(bert: BertConfig, num_span_fields: int, directory: Path) -> str:
    """Writes random weights; returns the checkpoint's prefix."""
    prefix = str(directory / "random.ckpt")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.compat.v1.set_random_seed(17)
        tf.compat.v1.train.get_or_create_global_step()  # The Estimator restores it.
        # Converters leave out what multiplies by 1 and adds 0, as new norms and biases
        # do, and trained ones do not.
        trained = [
            variable.assign_add(tf.random.normal(variable.shape, stddev=0.02))
            for variable in Linker(bert, num_span_fields).variables
        ]
        session.run(tf.compat.v1.global_variables_initializer())
        session.run(trained)
        tf.compat.v1.train.Saver().save(session, prefix)
    return prefix


def write_small(config: Config, directory: Path) -> None:
    """Writes DIRECTORY/SMALL, a model to `evaluate`, and words that are word pieces."""
    tokenizer = load_tokenizer(
        weights.vocab_path(config.model, config.features.tokenizer), config.features
    )
    assert isinstance(tokenizer, WordPiece)
    write_json(
        directory / WORDS,
        [
            piece
            for piece in tokenizer.vocab
            if piece.isascii() and piece.isalpha() and piece.islower()
        ],
    )
    small = dataclasses.replace(
        TINY,
        vocab_size=tokenizer.size,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        max_position_embeddings=config.features.max_seq_length,
    )
    (directory / SMALL).mkdir()
    write_checkpoint(small, len(config.features.span_fields), directory / SMALL)
    write_json(directory / SMALL / "bert_config.json", dataclasses.asdict(small))


def read_lengths(config: Config, run: Path) -> list[list[int]]:
    """Tokens of each pair of test mentions.

    Args:
      config: names the corpus.
      run: the directory to prepare it in, or where it is prepared already.
    """
    records = pipeline.prepare(config, run).test
    every = max(1, records.num_mentions // MENTIONS)
    lengths = _all_lengths(records, config.features.input_ids)
    return [mention for place, mention in enumerate(lengths) if place % every == 0]


def _all_lengths(records: RecordSet, feature: str) -> list[list[int]]:
    examples = tf.data.TFRecordDataset([str(file) for file in records.files])
    spec = {feature: tf.io.RaggedFeature(tf.int64)}
    lengths = [
        length
        for batch in examples.batch(4096)
        for length in tf.io.parse_example(batch, spec)[feature].row_lengths().numpy()
    ]
    found, start = [], 0
    for size in records.mention_sizes.tolist():
        found.append([int(length) for length in lengths[start : start + size]])
        start += size
    return found


def main() -> None:
    """Writes all there is to measure."""
    directory, run = Path(sys.argv[1]), Path(sys.argv[2])
    quick = sys.argv[3] == QUICK_CONFIG
    values = config_file.get_config(str(CONFIGS / f"{sys.argv[3]}.py"))
    config = resolve(values.to_dict())
    write_json(directory / LENGTHS, read_lengths(config, run))
    write_small(config, directory)
    for layers in tqdm(QUICK_LAYERS if quick else LAYERS, desc="models"):
        bert = dataclasses.replace(TINY if quick else MINILM, num_hidden_layers=layers)
        write_models(bert, directory / str(layers))


if __name__ == "__main__":
    try:
        main()
    except Failure as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
