"""The whole run, stage after stage: from the command's config to the artifacts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tabulate import tabulate

from bert_export import beam_prepare, beam_tasks, javascript
from bert_export.config import (
    SAVED_MODELS,
    Config,
    FeaturesConfig,
    Target,
    export_targets,
)
from bert_export.corpus.corpus import Corpus, entity_text, load_corpus
from bert_export.corpus.records import BadRecords, Mention
from bert_export.errors import StageError, UserError
from bert_export.export import formats, publish, requests, saved_model, tfjs_page
from bert_export.export.linker_graph import TrainedLinker
from bert_export.features import records
from bert_export.features.pairs import PairEncoder
from bert_export.features.spec import FeatureSpec
from bert_export.features.tokenizer import Tokenizer, load_tokenizer
from bert_export.files import sha256_file, write_json
from bert_export.linking import sample
from bert_export.modeling import weights
from bert_export.modeling.bert_config import BertConfig
from bert_export.release import deploy, manifest
from bert_export.training import estimator as training
from bert_export.training import evaluation, multi_worker
from bert_export.training.halves import share_threads
from bert_export.training.model_fn import ModelParams
from bert_export.verification import baselines, proof, report
from bert_export.verification.run import run_smoke_test
from bert_export.workdir import read_summary, record_training, stage, summarize

# Of the Estimator's messages only errors are for the person who waits; what the
# stages have to say they print.
tf.get_logger().setLevel("ERROR")

EVALUATION_FILE = "evaluation.json"
SPLITS = ("train", "dev", "test")
# Training requests to a batch of calibration.
_CALIBRATION_BATCH = 16
# Raised whenever the same corpus would give other records than before.
_RECORDS_FORMAT = 1
# Options that came after records of that format had been made.
_LATER_FEATURES = ("tokenizer", "cls_token", "sep_token", "pad_token", "unk_token")


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


@dataclasses.dataclass(frozen=True)
class ExportSource:
    """What all artifacts of an export are made of and proven with."""

    config: Config
    estimator: Any
    model: TrainedLinker
    metrics: dict[str, Any]
    data_fingerprint: str
    examples: list[bytes]  # serialized requests from the split that is reported
    golden: dict[str, Any]  # what the trained model answers to them
    golden_texts: dict[str, Any]  # the same to texts; for serving_model
    calibration: list[dict[str, np.ndarray]]  # training requests; int8_calibrated
    held_out: proof.HeldOut
    corpus: Corpus | None  # where an artifact has texts of it


def run(config: Config, workdir: Path) -> dict[str, Path]:
    """Everything: prepare, train, evaluate, export. Returns what was published."""
    check(config, workdir)
    data = prepare(config, workdir)
    if config.train.do_train:
        train(config, workdir, data)
    if not multi_worker.is_chief():
        return {}
    checkpoint = choose_checkpoint(config, workdir)
    evaluate(config, workdir, data, checkpoint)
    return export(config, workdir, data, checkpoint)


def check(config: Config, workdir: Path) -> None:
    """Refuses what could only fail after hours of training.

    Raises:
      UserError: an extra that a format needs is not installed, versions cannot be
        written, or the BERT config is missing or too small for the features.
    """
    formats.require(export_targets(config.export))
    publish.check_export_dir(export_directory(config, workdir))
    _model_params(config)


def prepare(
    config: Config, workdir: Path, workers: beam_tasks.Workers | None = None
) -> Data:
    """Corpus → tf.Examples in WORKDIR/records; nothing is done for unchanged input.

    With `workers` these encode them, in place of this process, and nothing else
    differs.
    """
    share_threads()
    with stage("prepare", workdir), multi_worker.chief_first("prepared"):
        tokenizer = _load_tokenizer(config)
        _check_weights(config, workdir)
        encoder = PairEncoder(tokenizer, config.features)
        bad = BadRecords(config.corpus.max_bad_records)
        corpus = load_corpus(config.corpus, workdir, bad)
        fingerprint = _data_fingerprint(config, corpus, tokenizer)
        # A smaller tolerance has to be held against the corpus again.
        fingerprints = {
            split: f"{fingerprint}-{split}-{config.corpus.max_bad_records}"
            for split in SPLITS
        }
        if workers:
            written = beam_prepare.write_splits(
                config,
                weights.vocab_path(config.model, config.features.tokenizer),
                corpus,
                workdir / "records",
                fingerprints,
                bad,
                workers,
            )
        else:
            texts = corpus.candidate_texts(config.features.candidate_fields)
            written = {
                split: records.write_split(
                    corpus.mentions(split),
                    texts,
                    encoder,
                    workdir / "records",
                    split,
                    fingerprints[split],
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
        with multi_worker.chief_first("weights"):
            source = config.model.init_checkpoint or config.model.pretrained
            # Where that starts anew, it is from the weights of the source.
            resumes = training.recover(config, workdir / "model") is not None
            params = dataclasses.replace(
                _model_params(config),
                num_train_steps=training.num_train_steps(
                    config, data.train.num_mentions
                ),
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
        checkpoint = training.best_checkpoint(model_dir)
        curve = training.read_curve(model_dir)
        if checkpoint is None and any(point["step"] for point in curve):
            raise UserError(
                f"{model_dir}/best is damaged or missing; `train` finds what it can be "
                "made of again"
            )
        checkpoint = checkpoint or newest
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
    """Checkpoint → WORKDIR/evaluation.json and a table; nothing on a chief's helper."""
    if not multi_worker.is_chief():
        return {}
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


def export(
    config: Config,
    workdir: Path,
    data: Data,
    checkpoint: str,
    version: int | None = None,
) -> dict[str, Path]:
    """Checkpoint → a proven artifact of each format, set-ups to serve them, a report.

    An artifact that fails its proof is not published; the others are. Nothing is done
    on a chief's helper (see training.multi_worker).

    Args:
      config: the run's.
      workdir: its directory.
      data: what `prepare` returned.
      checkpoint: the prefix of the checkpoint.
      version: the artifacts' number; None for one after all that are there.

    Returns:
      The published artifacts by the names of their targets.

    Raises:
      StageError: some were not published; all others were.
    """
    if not multi_worker.is_chief():
        return {}
    metrics = _recorded_metrics(config, workdir, data, checkpoint)
    if metrics is None:
        metrics = evaluate(config, workdir, data, checkpoint)
    with stage("export", workdir):
        targets = export_targets(config.export)
        formats.require(targets)
        export_dir = export_directory(config, workdir)
        version = version or max(
            publish.new_version(target_directory(export_dir, target))
            for target in targets
        )
        source = _export_source(config, workdir, data, checkpoint, metrics, targets)
        # Before anything is published, as it might fail.
        measured = (
            baselines.measure(source.model, source.held_out)
            if config.export.benchmark
            else []
        )
        published: dict[str, Path] = {}
        failed: dict[str, str] = {}
        rows: list[dict[str, Any]] = []
        for target in targets:
            print(f"-- {target.name}", file=sys.stderr, flush=True)
            try:
                artifact, result = _export_target(source, target, export_dir, version)
            except StageError as error:
                failed[target.name] = str(error)
                rows.append(report.failed_row(target, str(error)))
                print(f"not published: {target.name}: {error}", file=sys.stderr)
            else:
                published[target.name] = artifact
                rows.append(report.row(target, artifact, result))
                print(f"published: {artifact}")
        rows += measured
        context = report.Context(
            config.name,
            version,
            source.model,
            config,
            metrics,
            data.fingerprint,
            source.held_out,
            {key: read_summary(workdir)[key] for key in ("entities", "splits")},
        )
        report_dir = report.write(export_dir / "reports" / str(version), rows, context)
        print(report.text_table(rows, context))
        print(f"report: {report_dir / 'report.html'}")
        if published:
            deploy.write(
                export_dir / "deploy" / str(version),
                name=config.name,
                version=version,
                artifacts=list(published.values()),
                export_dir=export_dir,
                # Model servers have to be told some batch size in any case.
                seconds=8.0 if config.export.benchmark else 1.0,
            )
        summarize(
            workdir,
            version=version,
            artifacts={name: str(path) for name, path in published.items()},
            not_published=failed,
            report=str(report_dir),
        )
        if failed:
            raise StageError(
                f"{len(failed)} of {len(targets)} artifacts were not published: "
                + "; ".join(f"{name}: {why}" for name, why in failed.items())
            )
        return published


def _export_target(
    source: ExportSource, target: Target, export_dir: Path, version: int
) -> tuple[Path, dict[str, Any]]:
    """Writes, proves and publishes one artifact.

    Returns:
      Its directory, and what its proof measured.

    Raises:
      StageError: it could not be written, or its proof failed.
    """
    config = source.config
    directory = target_directory(export_dir, target)
    with publish.staging(directory, version) as staged:
        notes: list[str] = []
        if target.format == "saved_model":
            saved_model.export_saved_model(
                source.estimator, source.model.spec, staged, source.model.checkpoint
            )
        else:
            notes = formats.write(target, source.model, staged, source.calibration)
        saved_model.write_vocab(staged, source.model.tokenizer)
        requests.write_golden(staged, source.golden)
        if target.format in SAVED_MODELS and config.export.warmup_requests:
            requests.write_warmup(
                staged,
                config.name,
                source.examples[: config.export.warmup_requests],
                source.model.spec,
                source.golden_texts if target.format == "serving_model" else None,
            )
        if target.format == "serving_model":
            requests.write_golden_texts(staged, source.golden_texts)
        if target.format == "tfjs":
            assert source.corpus is not None
            notes += tfjs_page.write(
                staged,
                source.corpus,
                javascript.packages(),
                name=config.name,
                features=config.features,
                # Without NIL mentions to choose it on, nothing is called NIL.
                nil_threshold=(source.metrics["nil"] or {}).get("threshold", 0.0),
                examples=source.corpus.mentions(config.eval.split),
            )
        manifest.write(
            staged,
            manifest.build(
                staged,
                name=config.name,
                spec=source.model.spec,
                checkpoint_path=source.model.checkpoint,
                config=json.loads(config.to_json()),
                metrics=source.metrics,
                data_fingerprint=source.data_fingerprint,
                target=target,
                encoder=dataclasses.asdict(source.model.bert),
                notes=notes,
            ),
        )
        if target.format in SAVED_MODELS:
            smoke_test_result = run_smoke_test(staged)
            print(f"smoke test: {len(smoke_test_result['checks'])} checks passed")
        result = proof.prove(
            staged,
            source.held_out.path,
            config.export.max_accuracy_drop,
            config.export.benchmark,
        )
        skipped = proof.skipped(result)
        print(f"proof: {len(result['checks']) - len(skipped)} checks passed")
        for reason in skipped:
            print(f"proof: skipped: {reason}")
        return publish.publish(staged, directory, version), result


def smoke_test(artifact: Path) -> None:
    """Checks an exported artifact again, in a fresh process; prints the checks.

    Raises:
      UserError: it is no artifact.
      StageError: a check failed; it is named.
    """
    try:
        if manifest.read(artifact)["format"] in SAVED_MODELS:
            result = run_smoke_test(artifact)
        else:
            result = proof.check(artifact)
    except StageError as error:
        raise StageError(f"{artifact}: {error}") from error
    print(tabulate([list(check.values()) for check in result["checks"]]))


def export_directory(config: Config, workdir: Path) -> Path:
    """Where versions are published."""
    return Path(config.export.dir) if config.export.dir else workdir / "export"


def target_directory(export_dir: Path, target: Target) -> Path:
    """Where the versions of a target are published.

    The plain SavedModel's are the export directory's own, as a model server polls it;
    servers pass over directories whose names are no numbers.
    """
    return export_dir if target.format == "saved_model" else export_dir / target.name


def _export_source(
    config: Config,
    workdir: Path,
    data: Data,
    checkpoint: str,
    metrics: dict[str, Any],
    targets: list[Target],
) -> ExportSource:
    """Asks the trained model for all that its artifacts will be held against."""
    params = _model_params(config)
    tokenizer = _load_tokenizer(config)
    estimator = training.create_estimator(config, params, workdir / "model")
    split = data.split(config.eval.split)
    examples = records.spread_examples(split, config.export.golden_requests)
    formats_wanted = {target.format for target in targets}
    corpus = None
    if formats_wanted & {"serving_model", "tfjs"}:
        bad = BadRecords(config.corpus.max_bad_records)
        corpus = load_corpus(config.corpus, workdir, bad)
    golden_texts: dict[str, Any] = {}
    if "serving_model" in formats_wanted and corpus is not None:
        golden_texts = requests.record_golden_texts(
            estimator,
            checkpoint,
            _text_requests(config, corpus),
            PairEncoder(tokenizer, config.features),
            params.spec,
        )
    calibration = []
    if any(target.precision == "int8_calibrated" for target in targets):
        chosen = records.spread_examples(data.train, config.export.calibration_requests)
        calibration = [
            requests.dense_batch(
                chosen[first : first + _CALIBRATION_BATCH], params.spec
            )
            for first in range(0, len(chosen), _CALIBRATION_BATCH)
        ]
    return ExportSource(
        config=config,
        estimator=estimator,
        model=TrainedLinker(checkpoint, params.bert, config.features, tokenizer),
        metrics=metrics,
        data_fingerprint=data.fingerprint,
        examples=examples,
        golden=requests.record_golden(estimator, checkpoint, examples, params.spec),
        golden_texts=golden_texts,
        calibration=calibration,
        held_out=proof.record_held_out(
            estimator,
            checkpoint,
            split,
            params.spec,
            config.eval.mentions_per_batch,
            config.export.proof_mentions,
            workdir / "held_out.npz",
        ),
        corpus=corpus,
    )


def check_same_vocabulary(config: Config, artifact: Path) -> None:
    """Refuses to train on from an artifact with another vocabulary.

    Raises:
      UserError: its word pieces are not those of the config.
    """
    path = weights.vocab_path(config.model, config.features.tokenizer)
    own = artifact / saved_model.vocab_path(config.features.tokenizer)
    content = load_tokenizer(path, config.features).content
    if not own.is_file() or own.read_bytes() != content:
        raise UserError(
            f"--warm_start: the vocabulary {path} is not that of the model in "
            f"production, {artifact}; train without --warm_start"
        )


def _text_requests(config: Config, corpus: Corpus) -> list[tuple[Mention, str]]:
    """Mentions of the split that is reported, each with its first candidate's text."""
    ambiguous = (m for m in corpus.mentions(config.eval.split) if m.candidates)
    fields = config.features.candidate_fields
    return [
        (mention, entity_text(corpus.entities[mention.candidates[0]], fields))
        for mention in sample(ambiguous, config.export.golden_requests)
        if mention.candidates
    ]


def _load_tokenizer(config: Config) -> Tokenizer:
    """The config's tokenizer.

    Raises:
      UserError: its vocabulary is missing, damaged or larger than the model's.
    """
    path = weights.vocab_path(config.model, config.features.tokenizer)
    tokenizer = load_tokenizer(path, config.features)
    bert = _model_params(config).bert
    if tokenizer.size > bert.vocab_size:
        raise UserError(
            f"{path}: {tokenizer.size} word pieces, but the BERT config's vocab_size "
            f"is {bert.vocab_size}"
        )
    return tokenizer


def _check_weights(config: Config, workdir: Path) -> None:
    """Refuses what training could not start from, before any of its work.

    Raises:
      UserError: the initial weights are missing, damaged or not the BERT config's, or
        the config contradicts a TensorFlow Hub module.
    """
    bert = _model_params(config).bert
    weights.check_module(config.model, bert, config.features.lower_case)
    source = config.model.init_checkpoint or config.model.pretrained
    resumes = training.newest_checkpoint(workdir / "model") is not None
    if source and config.train.do_train and not resumes:
        path = weights.bert_config_path(config.model)
        weights.check_pretrained(source, bert, path)


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


def _data_fingerprint(config: Config, corpus: Corpus, tokenizer: Tokenizer) -> str:
    """Hex SHA-256 of all that decides what the records hold."""
    features = dataclasses.asdict(config.features)
    for key in _LATER_FEATURES:
        # Records that were made before there was a choice stay what they are.
        if features[key] == getattr(FeaturesConfig, key):
            del features[key]
    parts = {
        "format": _RECORDS_FORMAT,
        # Their bytes, and not where they are found.
        "files": {role: sha256_file(file) for role, file in corpus.files.items()},
        "fractions": [config.corpus.dev_fraction, config.corpus.test_fraction],
        "max_candidates": config.corpus.max_candidates,
        "features": features,
        "vocab": tokenizer.fingerprint,
    }
    if config.corpus.candidate_generation != "folded":
        # Records made before there was a choice stay valid.
        parts["candidate_generation"] = config.corpus.candidate_generation
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
