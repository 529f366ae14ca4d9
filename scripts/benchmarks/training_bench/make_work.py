"""Writes the pairs that all contenders train on and are tested with, and the weights.

Usage: python make_work.py WORKDIR STEPS TEST_MENTIONS quick|full
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
from work import ABOUT, CONFIG, PAIRS, TEXTS

from bert_export import config_file, pipeline
from bert_export.config import Config, resolve
from bert_export.corpus.corpus import Corpus, entity_text, load_corpus
from bert_export.corpus.records import BadRecords, Mention
from bert_export.errors import Failure, StageError
from bert_export.export import huggingface
from bert_export.export.linker_graph import TrainedLinker
from bert_export.features.records import RecordSet
from bert_export.features.spec import MENTION_ID, FeatureSpec
from bert_export.features.tokenizer import load_tokenizer
from bert_export.files import write_json
from bert_export.modeling import weights
from bert_export.modeling.bert_config import BertConfig
from bert_export.modeling.linker import Linker
from bert_export.training.input_fn import ordered_input_fn, train_input_fn

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
# Of the peers; ours has as many whole mentions as make about as many pairs.
PAIRS_A_STEP = 48


def write(workdir: Path, steps: int, test_mentions: int, quick: bool) -> None:
    """Writes WORKDIR/work.json, texts.json, pairs.npz and config.json.

    Args:
      workdir: also keeps the prepared corpus for the next time.
      steps: of training, for which there are to be pairs.
      test_mentions: that accuracy is measured on, spread over the test split.
      quick: a tiny model with random weights, and the sample corpus.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    config = _config("sample" if quick else "benchmark")
    if quick:
        config = _tiny(config, workdir / "tiny")
    config = dataclasses.replace(
        config,
        # What the other libraries have, too.
        train=dataclasses.replace(config.train, loss="pointwise"),
    )
    run = workdir / "run"
    data = pipeline.prepare(config, run)
    corpus = load_corpus(config.corpus, run, BadRecords(config.corpus.max_bad_records))
    spec = FeatureSpec.from_config(config.features)
    train_batches = train_input_fn(
        data.train,
        spec,
        config.train.mentions_per_batch,
        config.train.shuffle_mentions,
        config.train.seed,
        first_step=0,
    )().take(steps + 1)
    test_batches = ordered_input_fn(
        data.test, spec, config.eval.mentions_per_batch, test_mentions
    )()
    arrays: dict[str, np.ndarray] = {}
    texts: dict[str, list[list[str]]] = {}
    for split, batches, records in (
        ("train", train_batches, data.train),
        ("test", test_batches, data.test),
    ):
        encoded, mention_ids = _encoded(batches, spec)
        arrays |= {f"{split}_{name}": value for name, value in encoded.items()}
        arrays[f"{split}_mentions"] = mention_ids
        texts[split] = list(_texts(config, corpus, records, mention_ids))
    np.savez(workdir / PAIRS, **arrays)
    (workdir / TEXTS).write_text(json.dumps(texts), "utf-8")
    (workdir / CONFIG).write_text(config.to_json(), "utf-8")
    pretrained = weights.pretrained_files(config.model.pretrained)
    write_json(
        workdir / ABOUT,
        {
            "records": str(run / "records"),
            "hugging_face": str(pretrained.weights.parent),
            "checkpoint": weights.prepare_checkpoint(config.model.pretrained, run),
            "bert_config": str(weights.bert_config_path(config.model)),
            # As many as make whole steps.
            "train_pairs": len(texts["train"]) // PAIRS_A_STEP * PAIRS_A_STEP,
            "test_mentions": test_mentions,
            "max_seq_length": config.features.max_seq_length,
            "pairs_a_step": PAIRS_A_STEP,
            "learning_rate": config.train.learning_rate,
            "warmup_fraction": config.train.warmup_fraction,
            "weight_decay": config.train.weight_decay,
            "clip_norm": config.train.clip_norm,
            "seed": config.train.seed,
            # For the report.
            "weights": "a tiny BERT with random weights"
            if quick
            else "MiniLM-L6 (6 layers, hidden size 384)",
            "corpus": "the sample corpus" if quick else "WordNet's usage examples",
            "tokens_a_pair": float(arrays["train_lengths"].mean()),
            "bert": dataclasses.asdict(
                BertConfig.from_json(weights.bert_config_path(config.model))
            ),
            "reads": 1 + len(spec.span_fields),
        },
    )


def _config(name: str) -> Config:
    values = config_file.get_config(str(CONFIGS / f"{name}.py")).to_dict()
    return resolve(values)


def _tiny(config: Config, directory: Path) -> Config:
    """The sample's config, made to start from random weights that all can load."""
    config = dataclasses.replace(
        config, features=dataclasses.replace(config.features, span_fields=())
    )
    bert = BertConfig.from_json(weights.bert_config_path(config.model))
    tokenizer = load_tokenizer(
        weights.vocab_path(config.model, config.features.tokenizer), config.features
    )
    shutil.rmtree(directory, ignore_errors=True)
    files = directory / "hugging_face"
    files.mkdir(parents=True)
    prefix = str(directory / "random.ckpt")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.compat.v1.set_random_seed(17)
        Linker(bert, num_span_fields=0)
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(session, prefix)
    model = TrainedLinker(prefix, bert, config.features, tokenizer)
    huggingface.write(model, files, "float32", [])
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, pretrained=str(files))
    )


def _encoded(
    batches: tf.data.Dataset, spec: FeatureSpec
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """All pairs of some batches, in their order.

    Returns:
      `input_ids` and `token_type_ids` [tokens], `lengths` and `labels` [pairs],
      `step_pairs` [batches]; and the mention of each pair [pairs].
    """
    found: dict[str, list[np.ndarray]] = {
        name: [] for name in ("input_ids", "token_type_ids", "lengths", "labels")
    }
    mention_ids, step_pairs = [], []
    for features, labels in batches.as_numpy_iterator():
        is_real = features[spec.input_mask] > 0  # [pairs, longest]
        found["input_ids"].append(features[spec.input_ids][is_real])
        found["token_type_ids"].append(features[spec.segment_ids][is_real])
        found["lengths"].append(is_real.sum(axis=1))
        found["labels"].append(labels[spec.label_ids])
        mention_ids.append(labels[MENTION_ID])
        step_pairs.append(len(is_real))
    arrays = {name: np.concatenate(values) for name, values in found.items()}
    arrays["step_pairs"] = np.array(step_pairs)
    return arrays, np.concatenate(mention_ids)


def _texts(
    config: Config, corpus: Corpus, records: RecordSet, mention_ids: np.ndarray
) -> Iterator[list[str]]:
    """The pairs' texts, the mention marked: [text, candidate's text] each.

    Args:
      config: says how they are made.
      corpus: has them.
      records: of the split.
      mention_ids: [pairs], in which each mention's pairs stand together.

    Raises:
      StageError: the records have left out mentions that the corpus has.
    """
    mentions = [m for m in corpus.mentions(records.split) if m.candidates]
    sizes = [len(mention.candidates or ()) for mention in mentions]
    if sizes != records.mention_sizes.tolist():
        raise StageError(
            f"the {records.split} split has mentions that cannot be encoded; the "
            "benchmark needs a corpus without"
        )
    pair = 0
    while pair < len(mention_ids):
        mention = mentions[mention_ids[pair]]
        pair += len(mention.candidates or ())
        for candidate in mention.candidates or ():
            entity = corpus.entities[candidate]
            yield [
                _marked(mention, config.features.mention_marker),
                entity_text(entity, config.features.candidate_fields),
            ]


def _marked(mention: Mention, marker: str) -> str:
    before, after = mention.text[: mention.start], mention.text[mention.end :]
    return f"{before}{marker}{mention.surface}{marker}{after}"


def main(arguments: list[str]) -> None:
    """See the module's docstring."""
    workdir, steps, mentions, size = arguments
    try:
        write(Path(workdir), int(steps), int(mentions), size == "quick")
    except Failure as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(sys.argv[1:])
