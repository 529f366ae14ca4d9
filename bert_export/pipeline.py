"""The whole run, stage after stage: from the command's config to the artifact."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import tensorflow as tf

from bert_export.config import Config
from bert_export.corpus.corpus import Corpus, entity_text, load_corpus
from bert_export.corpus.records import BadRecords
from bert_export.errors import StageError, UserError
from bert_export.export import publish, requests, saved_model
from bert_export.features import records
from bert_export.features.pairs import PairEncoder
from bert_export.features.spec import FeatureSpec
from bert_export.features.tokenizer import load_vocab
from bert_export.files import sha256_file, write_json
from bert_export.modeling import weights
from bert_export.modeling.bert_config import BertConfig
from bert_export.release import manifest
from bert_export.training import estimator as training
from bert_export.training import evaluation
from bert_export.training.model_fn import ModelParams
from bert_export.verification.run import run_smoke_test
from bert_export.workdir import read_summary, record_training, stage, summarize

# Of the Estimator's messages only errors are for the person who waits; what the
# stages have to say they print.
tf.get_logger().setLevel("ERROR")

EVALUATION_FILE = "evaluation.json"
SPLITS = ("train", "dev", "test")
# Raised whenever the same corpus would give other records than before.
_RECORDS_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Data:
    """A prepared corpus: its records split by split."""

    train: records.RecordSet
    dev: records.RecordSet
    test: records.RecordSet
    fingerprint: str

    def split(self, name: str) -> records.RecordSet:
        """The records of 'train', 'dev' or 'test'."""
        return {"train": self.train, "dev": self.dev, "test": self.test}[name]


def run(config: Config, workdir: Path) -> Path:
    """Everything: prepare, train, evaluate, export. Returns the new version."""
    # Refused here rather than after hours of training.
    publish.check_export_dir(export_directory(config, workdir))
    _model_params(config)
    data = prepare(config, workdir)
    if config.train.do_train:
        train(config, workdir, data)
    checkpoint = choose_checkpoint(config, workdir)
    evaluate(config, workdir, data, checkpoint)
    return export(config, workdir, data, checkpoint)


def prepare(config: Config, workdir: Path) -> Data:
    """Corpus → tf.Examples in WORKDIR/records; nothing is done for unchanged input."""
    with stage("prepare", workdir):
        vocab = load_vocab(weights.vocab_path(config.model))
        bert = _model_params(config).bert
        if len(vocab) > bert.vocab_size:
            raise UserError(
                f"{weights.vocab_path(config.model)}: {len(vocab)} word pieces, but "
                f"the BERT config's vocab_size is {bert.vocab_size}"
            )
        encoder = PairEncoder(vocab, config.features)
        bad = BadRecords(config.corpus.max_bad_records)
        corpus = load_corpus(config.corpus, workdir, bad)
        fingerprint = _data_fingerprint(config, corpus, vocab)
        texts = {
            entity.id: entity_text(entity, config.features.candidate_fields)
            for entity in corpus.entities.values()
        }
        written = {
            split: records.write_split(
                corpus.mentions(split),
                texts,
                encoder,
                workdir / "records",
                split,
                # A smaller tolerance has to be held against the corpus again.
                f"{fingerprint}-{split}-{config.corpus.max_bad_records}",
                config.features.num_shards,
                bad,
            )
            for split in SPLITS
        }
        if read_summary(workdir).get("data_fingerprint") != fingerprint:
            # Reused records do not tell which mentions were left out of them.
            summarize(workdir, bad_records=bad.summary())
        summarize(
            workdir,
            data_fingerprint=fingerprint,
            entities=len(corpus.entities),
            splits={
                split: {
                    "mentions": written[split].num_mentions,
                    "pairs": written[split].num_records,
                    "mentions_without_candidates": written[split].no_candidates,
                }
                for split in SPLITS
            },
        )
        return Data(**written, fingerprint=fingerprint)


def train(config: Config, workdir: Path, data: Data) -> None:
    """Records → checkpoints in WORKDIR/model, from the newest one if there is any."""
    with stage("train", workdir):
        if not data.train.num_mentions:
            raise UserError("the train split has no mention with candidates")
        source = config.model.init_checkpoint or config.model.pretrained
        resumes = training.newest_checkpoint(workdir / "model") is not None
        params = dataclasses.replace(
            _model_params(config),
            num_train_steps=training.num_train_steps(config, data.train.num_mentions),
            pretrained=weights.prepare_checkpoint(source, workdir)
            if source and not resumes
            else None,
        )
        record_training(config, data.fingerprint, workdir)
        estimator = training.create_estimator(
            config, params, workdir / "model", config.train.bfloat16
        )
        training.train(estimator, config, params, data.train, data.dev)


def choose_checkpoint(config: Config, workdir: Path) -> str:
    """The prefix of the checkpoint to evaluate and export; says which.

    After training it is the best on dev, else the newest; without training, that of
    model.init_checkpoint, else the newest.

    Raises:
      UserError: there is none, or it does not fit the config's model.
    """
    model_dir = workdir / "model"
    newest = training.newest_checkpoint(model_dir)
    if config.train.do_train:
        checkpoint = training.best_checkpoint(model_dir) or newest
    elif config.model.init_checkpoint:
        checkpoint = weights.prepare_checkpoint(config.model.init_checkpoint, workdir)
    else:
        checkpoint = newest
    if checkpoint is None:
        raise UserError(
            f"no checkpoint in {model_dir}; train first, or name one with "
            "--nodo_train --init_checkpoint=PREFIX"
        )
    params = _model_params(config)
    weights.check_trained(checkpoint, params.bert, len(params.spec.span_fields))
    print(f"checkpoint: {checkpoint} (step {training.global_step(checkpoint)})")
    return checkpoint


def evaluate(
    config: Config, workdir: Path, data: Data, checkpoint: str
) -> dict[str, Any]:
    """Checkpoint → WORKDIR/evaluation.json and a table."""
    with stage("evaluate", workdir):
        params = _model_params(config)
        metrics = evaluation.evaluate(
            training.create_estimator(config, params, workdir / "model"),
            checkpoint,
            data.dev,
            data.split(config.eval.split),
            params.spec,
            config.eval.mentions_per_batch,
            config.eval.max_mentions,
        )
        measured = {**_measured(config, data, checkpoint), "metrics": metrics}
        write_json(workdir / EVALUATION_FILE, measured)
        print(evaluation.metrics_table(metrics))
        summarize(workdir, link_accuracy=metrics["link_accuracy"])
        return metrics


def export(config: Config, workdir: Path, data: Data, checkpoint: str) -> Path:
    """Checkpoint → a proven version in the export directory, or nothing at all."""
    metrics = _recorded_metrics(config, workdir, data, checkpoint)
    if metrics is None:
        metrics = evaluate(config, workdir, data, checkpoint)
    with stage("export", workdir):
        export_dir = export_directory(config, workdir)
        version = publish.new_version(export_dir)
        params = _model_params(config)
        estimator = training.create_estimator(config, params, workdir / "model")
        examples = records.spread_examples(
            data.split(config.eval.split), config.export.golden_requests
        )
        with publish.staging(export_dir, version) as staged:
            saved_model.export_saved_model(
                estimator,
                params.spec,
                staged,
                checkpoint,
                weights.vocab_path(config.model),
            )
            golden = requests.record_golden(
                estimator, checkpoint, examples, params.spec
            )
            requests.write_golden(staged, golden)
            if config.export.warmup_requests:
                requests.write_warmup(
                    staged,
                    config.name,
                    examples[: config.export.warmup_requests],
                    params.spec,
                )
            manifest.write(
                staged,
                manifest.build(
                    staged,
                    name=config.name,
                    spec=params.spec,
                    checkpoint_path=checkpoint,
                    config=json.loads(config.to_json()),
                    metrics=metrics,
                    data_fingerprint=data.fingerprint,
                ),
            )
            run_smoke_test(staged)
            published = publish.publish(staged, export_dir, version)
        print(f"published: {published}")
        summarize(workdir, version=str(published))
        return published


def smoke_test(artifact: Path) -> None:
    """Checks an exported artifact again, in a fresh process.

    Raises:
      StageError: a check failed; it is named.
    """
    try:
        run_smoke_test(artifact)
    except StageError as error:
        raise StageError(f"smoke_test failed: {error}") from error


def export_directory(config: Config, workdir: Path) -> Path:
    """Where versions are published."""
    return Path(config.export.dir) if config.export.dir else workdir / "export"


def _model_params(config: Config) -> ModelParams:
    """The model without anything that only training needs.

    Raises:
      UserError: the BERT config is missing or too small for the features.
    """
    bert = BertConfig.from_json(weights.bert_config_path(config.model))
    if config.features.max_seq_length > bert.max_position_embeddings:
        raise UserError(
            "config.features.max_seq_length: expected at most the BERT config's "
            f"max_position_embeddings, {bert.max_position_embeddings}, found "
            f"{config.features.max_seq_length}"
        )
    spec = FeatureSpec.from_config(config.features)
    return ModelParams(spec, bert, config.train, num_train_steps=1, pretrained=None)


def _measured(config: Config, data: Data, checkpoint: str) -> dict[str, Any]:
    """What metrics are of."""
    return {
        "checkpoint": checkpoint,
        # Of the index, which has the checksums of all tensors: a model trained anew
        # has checkpoints of the same names.
        "checkpoint_sha256": sha256_file(f"{checkpoint}.index"),
        "split": config.eval.split,
        "max_mentions": config.eval.max_mentions,
        "data_fingerprint": data.fingerprint,
    }


def _recorded_metrics(
    config: Config, workdir: Path, data: Data, checkpoint: str
) -> dict[str, Any] | None:
    """The metrics in WORKDIR/evaluation.json, if they are this checkpoint's."""
    path = workdir / EVALUATION_FILE
    if not path.exists():
        return None
    recorded = json.loads(path.read_text(encoding="utf-8"))
    metrics = recorded.pop("metrics")
    return metrics if recorded == _measured(config, data, checkpoint) else None


def _data_fingerprint(config: Config, corpus: Corpus, vocab: list[str]) -> str:
    """Hex SHA-256 of all that decides what the records hold."""
    parts = {
        "format": _RECORDS_FORMAT,
        # Their bytes, and not where they are found.
        "files": {role: sha256_file(file) for role, file in corpus.files.items()},
        "fractions": [config.corpus.dev_fraction, config.corpus.test_fraction],
        "max_candidates": config.corpus.max_candidates,
        "features": dataclasses.asdict(config.features),
        "vocab": vocab,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
