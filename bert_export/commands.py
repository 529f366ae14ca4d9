"""One function a command; the only reader of flags."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import shlex
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import config_flags

from bert_export import config_file
from bert_export.config import (
    CONVERTED_BUILDERS,
    PRECISIONS,
    RETRAIN_STAGES,
    SAVED_MODELS,
    TOKENIZER_FILES,
    Config,
    CorpusConfig,
    FeaturesConfig,
    Target,
    check_converted,
    resolve,
)
from bert_export.errors import Damaged, UserError
from bert_export.files import write_bytes
from bert_export.workdir import CONFIG_FILE, record_config

if TYPE_CHECKING:
    from bert_export import beam_tasks
    from bert_export.release.model_base import ModelBase

# TensorFlow takes seconds to import, so what needs it is imported inside commands,
# and only once config and flags are known to be good.

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    help_string=(
        "configs/NAME.py, or a config.json that an earlier run wrote; "
        "--config.any.leaf=value overrides an option. "
        "Default: the config.json in the workdir."
    ),
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of all that a run writes.")
_DO_TRAIN = flags.DEFINE_boolean(
    "do_train",
    None,
    "Train before export (default: true); --nodo_train exports --init_checkpoint or "
    "else the newest checkpoint in the workdir.",
)
_INIT_CHECKPOINT = flags.DEFINE_string(
    "init_checkpoint",
    None,
    "Weights to start from in place of config.model.pretrained; with --nodo_train, "
    "the trained checkpoint to evaluate and export.",
)
_USE_TPU = flags.DEFINE_boolean(
    "use_tpu", None, "TPUEstimator; sets config.train.use_tpu."
)
_WORDNET_DIR = flags.DEFINE_string(
    "wordnet_dir", None, "Sets config.corpus.wordnet_dir."
)
_MAX_BAD_RECORDS = flags.DEFINE_integer(
    "max_bad_records",
    None,
    "Sets config.corpus.max_bad_records, also for convert_corpus and train_vocab.",
    lower_bound=0,
)
_EXPORT_DIR = flags.DEFINE_string("export_dir", None, "Sets config.export.dir.")
_MODEL_BASE = flags.DEFINE_string(
    "model_base",
    None,
    "retrain, rollback, versions, verify_version: the directory, or URL of fsspec, "
    "under which published models are.",
)
_NAME = flags.DEFINE_string(
    "name",
    None,
    "rollback, versions, verify_version: the model's name below --model_base. "
    "Default: that of the config.",
)
_VERSION = flags.DEFINE_integer(
    "version",
    None,
    "rollback: where to go. Default: the version before the current one. "
    "verify_version: what to check. Default: the current one.",
    lower_bound=1,
)
_ARTIFACT = flags.DEFINE_string(
    "artifact",
    None,
    "smoke_test, link, batch_link, demo: the version directory to load. Default: the "
    "workdir's newest.",
)
_TEXT = flags.DEFINE_multi_string(
    "text", [], "link: a sentence with its mention in [[double brackets]]"
)
_INPUT = flags.DEFINE_string(
    "input",
    None,
    "link: a file of such sentences or of mentions as JSON Lines; - is standard input. "
    "batch_link: files or patterns, joined by commas, of mentions as JSON Lines, gzip "
    "or not, or as .tfrecord.",
)
_ENTITIES = flags.DEFINE_string(
    "entities",
    None,
    "link, batch_link: entities to link to. Default: those of the corpus. "
    "convert_corpus: the "
    "file, or directory, of entities.",
)
_MENTIONS = flags.DEFINE_string(
    "mentions", None, "convert_corpus: the file of mentions; of train, if split."
)
_DEV_MENTIONS = flags.DEFINE_string(
    "dev_mentions", None, "convert_corpus: the file of the dev split."
)
_TEST_MENTIONS = flags.DEFINE_string(
    "test_mentions", None, "convert_corpus: the file of the test split."
)
_ZESHEL_CANDIDATES = flags.DEFINE_list(
    "zeshel_candidates",
    [],
    "convert_corpus: files or directories of TF-IDF candidates.",
)
_PUBTATOR_PMIDS = flags.DEFINE_list(
    "pubtator_pmids",
    [],
    "convert_corpus: the lists of train's, dev's and test's PMIDs.",
)
_TABLE_COLUMNS = flags.DEFINE_list(
    "table_columns",
    [],
    "convert_corpus: OURS=THEIRS for each column whose name differs from ours.",
)
_CONTEXT_WORDS = flags.DEFINE_integer(
    "context_words",
    CorpusConfig.context_words,
    "convert_corpus: words of a document kept on each side of a mention.",
    lower_bound=1,
)
_SAMPLE = flags.DEFINE_integer(
    "sample",
    None,
    "link: only so many mentions, drawn at random and always the same.",
    lower_bound=1,
)
_SHOW = flags.DEFINE_integer(
    "show",
    None,
    "link: print the candidates of only so many mentions; the totals are of all.",
    lower_bound=0,
)
_TOP = flags.DEFINE_integer(
    "top", 3, "link: candidates to show of each mention.", lower_bound=1
)
_JSON = flags.DEFINE_boolean(
    "json",
    False,
    "link: print JSON Lines. candidates, versions: print JSON. retrain: print the "
    "summary.",
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "freeze: the prefix of any TensorFlow 1 checkpoint with its .meta, or a directory, "
    "for its newest one.",
)
_OUTPUT_NODE_NAMES = flags.DEFINE_string(
    "output_node_names",
    None,
    "freeze, convert_tfjs: the nodes to compute, joined by commas; with or without :0.",
)
_OUTPUT_GRAPH = flags.DEFINE_string(
    "output_graph", None, "freeze: the frozen graph's file."
)
_OVERWRITE = flags.DEFINE_boolean(
    "overwrite",
    False,
    "freeze, candidates, convert_corpus, train_vocab, batch_link: replace existing "
    "files.",
)
_CHECK_INPUTS = flags.DEFINE_string(
    "check_inputs",
    None,
    "freeze: an .npz file with an array for each placeholder, to compare the frozen "
    "graph with the checkpoint on. Default: inputs are made up.",
)
_TFJS_INPUTS = (
    "tfjs_layers_model",
    "keras",
    "tf_saved_model",
    "tf_frozen_model",
    "tf_hub",
)
_INPUT_FORMAT = flags.DEFINE_enum(
    "input_format",
    None,
    [*_TFJS_INPUTS, *CONVERTED_BUILDERS],
    "convert_tfjs: what INPUT is. convert_corpus: the format of --mentions and "
    f"--entities: {', '.join(CONVERTED_BUILDERS)}.",
)
_OUTPUT_FORMAT = flags.DEFINE_enum(
    "output_format",
    "tfjs_graph_model",
    ["tfjs_graph_model", "tfjs_layers_model"],
    "convert_tfjs: what OUTPUT becomes.",
)
_QUANTIZATION = flags.DEFINE_enum(
    "quantization",
    None,
    ["float16", "uint8", "uint16"],
    "convert_tfjs: how weights are stored. Default: as they are.",
)
_SIGNATURE = flags.DEFINE_string(
    "signature",
    None,
    "convert_tfjs: of a SavedModel or hub module. Default: serving_default, or the "
    "only one.",
)
_SAVED_MODEL_TAGS = flags.DEFINE_string(
    "saved_model_tags",
    None,
    "convert_tfjs: of a SavedModel or hub module, joined by commas. Default: serve.",
)
_TYPE = flags.DEFINE_enum(
    "type",
    None,
    list(TOKENIZER_FILES),
    "train_vocab: what to learn. Default: config.features.tokenizer.",
)
_CORPUS = flags.DEFINE_list(
    "corpus",
    [],
    "train_vocab: files to learn from, joined by commas: JSON Lines of entities or "
    "mentions (.jsonl, .jsonl.gz), or plain text, a sentence a line. Default: the "
    "entities and the train split of --config.",
)
_VOCAB_SIZE = flags.DEFINE_integer(
    "vocab_size", None, "train_vocab: pieces, special tokens included.", lower_bound=1
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "train_vocab: the file to write. Default: config.model.vocab. candidates: a "
    ".jsonl, .jsonl.gz or .sqlite file for the alias table. Default: none. "
    "batch_link: what the paths of all results begin with; TFRecords are written if it "
    "ends in .tfrecord.",
)
_MODEL_TYPE = flags.DEFINE_enum(
    "model_type",
    None,
    ["unigram", "bpe"],
    "train_vocab: of SentencePiece. Default: unigram.",
)
_CHARACTER_COVERAGE = flags.DEFINE_float(
    "character_coverage",
    0.9995,
    "train_vocab: the part of all characters that get a piece; the others, the rarest "
    "ones, are unknown.",
    0.0,
    1.0,
)
_LOWER_CASE = flags.DEFINE_boolean(
    "lower_case",
    None,
    "train_vocab: learn from lower-cased text. Default: config.features.lower_case.",
)
_SPLIT = flags.DEFINE_enum(
    "split",
    None,
    ["train", "dev", "test"],
    "candidates: whose mentions to look up. Default: config.eval.split.",
)
_RUNNER = flags.DEFINE_string(
    "runner",
    None,
    "prepare, batch_link: Apache Beam's DirectRunner, FlinkRunner, SparkRunner, … "
    "Default: batch_link DirectRunner; prepare works in one process.",
)
_WORKERS = flags.DEFINE_integer(
    "workers",
    None,
    "prepare, batch_link: processes of the DirectRunner. Default: one a core.",
    lower_bound=1,
)
_BEAM_ARGS = flags.DEFINE_multi_string(
    "beam_args",
    [],
    "prepare, batch_link: options of Apache Beam and of the runner, in quotes.",
)
_SHARD_MENTIONS = flags.DEFINE_integer(
    "shard_mentions",
    20000,
    "batch_link: mentions of an output file, which is the least that a killed run "
    "does again.",
    lower_bound=1,
)
_FORCE = flags.DEFINE_boolean(
    "force", False, "retrain: even if nothing has changed since the last success."
)
_DRY_RUN = flags.DEFINE_boolean(
    "dry_run", False, "retrain: end with the gate's verdict; the same as --until=gate."
)
_UNTIL = flags.DEFINE_enum(
    "until",
    None,
    list(RETRAIN_STAGES),
    "retrain: end after this stage; another start goes on from there.",
)
_WARM_START = flags.DEFINE_boolean(
    "warm_start",
    False,
    "retrain: train on from the model in production, not from pretrained weights.",
)
_NOTIFY_COMMAND = flags.DEFINE_string(
    "notify_command",
    None,
    "retrain: a command that is given the run's summary, JSON, on standard input.",
)
_METRICS_FILE = flags.DEFINE_string(
    "metrics_file",
    None,
    "retrain: a .prom file for Prometheus' node_exporter to collect.",
)
_PORT = flags.DEFINE_integer(
    "port", 8000, "demo: the port to serve at; 0 for any.", 0, 65535
)
_HOST = flags.DEFINE_string(
    "host",
    "127.0.0.1",
    "demo: the address to serve at. Default: for this machine only.",
)


def run() -> None:
    """All stages: prepare, train, evaluate, export with its proof."""
    config, workdir = _config_and_workdir()
    record_config(config, workdir)
    from bert_export import pipeline

    pipeline.run(config, workdir)


def prepare() -> None:
    """Read the corpus and write its pairs as TFRecords."""
    config, workdir = _config_and_workdir()
    workers = None
    if _RUNNER.value:
        workers = _beam_workers()
    elif _WORKERS.value or _BEAM_ARGS.value:
        raise UserError(
            "prepare: --workers and --beam_args are of Apache Beam; add "
            "--runner=DirectRunner or another one"
        )
    record_config(config, workdir)
    from bert_export import pipeline

    pipeline.prepare(config, workdir, workers)


def train() -> None:
    """Fine-tune, or go on from the workdir's newest checkpoint."""
    config, workdir = _config_and_workdir()
    if not config.train.do_train:
        raise UserError("train: config.train.do_train is False; add --do_train")
    record_config(config, workdir)
    from bert_export import pipeline

    pipeline.train(config, workdir, pipeline.prepare(config, workdir))


def evaluate() -> None:
    """Measure link accuracy of the best checkpoint, beside baselines."""
    config, workdir = _config_and_workdir()
    from bert_export import pipeline

    data = pipeline.prepare(config, workdir)
    checkpoint = pipeline.choose_checkpoint(config, workdir)
    pipeline.evaluate(config, workdir, data, checkpoint)


def export() -> None:
    """Write proven artifacts of the best checkpoint, and a report."""
    config, workdir = _config_and_workdir()
    from bert_export import pipeline

    data = pipeline.prepare(config, workdir)
    checkpoint = pipeline.choose_checkpoint(config, workdir)
    pipeline.export(config, workdir, data, checkpoint)


def smoke_test() -> None:
    """Check an exported artifact in a fresh process."""
    artifact = _artifact()
    from bert_export import pipeline

    pipeline.smoke_test(artifact)


def link() -> None:
    """Rank the candidates of mentions with an exported artifact."""
    if not _TEXT.value and not _INPUT.value:
        raise UserError("link: give --text='... [[mention]] ...' or --input=FILE")
    artifact = _artifact()
    from bert_export import linking

    linker = linking.ArtifactLinker(artifact, _ENTITIES.value, _WORKDIR.value)
    mentions = linking.read_input(_TEXT.value, _INPUT.value, linker.entities)
    if _SAMPLE.value:
        mentions = linking.sample(mentions, _SAMPLE.value)
    linked = linker.link(mentions)
    if _JSON.value:
        for result in linked:
            print(json.dumps(result.to_dict(), ensure_ascii=False))
    else:
        print(linking.table(linked, _TOP.value, _SHOW.value))


def batch_link() -> None:
    """Link millions of mentions, on several processes or machines."""
    if not (_INPUT.value and _OUTPUT.value):
        raise UserError("batch_link: --input=FILES and --output=PREFIX are needed")
    workers = _beam_workers()
    artifact = _artifact()
    from bert_export import batch_link as linking

    counts = linking.batch_link(
        artifact,
        _ENTITIES.value,
        _WORKDIR.value,
        _INPUT.value.split(","),
        _OUTPUT.value,
        _SHARD_MENTIONS.value,
        workers,
        _OVERWRITE.value,
    )
    print(linking.table(counts))


def retrain() -> None:
    """Train, judge and publish a new model, if there is anything new."""
    config, workdir = _config_and_workdir()
    if not _MODEL_BASE.value:
        raise UserError(
            "retrain: --model_base=DIR is needed: where published models are"
        )
    if _DRY_RUN.value and _UNTIL.value not in (None, "gate"):
        raise UserError("retrain: --dry_run ends after the gate; leave out --until")
    from bert_export import retrain as retraining

    options = retraining.Options(
        force=_FORCE.value,
        until=_UNTIL.value or ("gate" if _DRY_RUN.value else RETRAIN_STAGES[-1]),
        warm_start=_WARM_START.value,
        notify_command=_NOTIFY_COMMAND.value,
        metrics_file=_METRICS_FILE.value,
        json=_JSON.value,
    )
    retraining.retrain(config, workdir, _MODEL_BASE.value, options)


def candidates() -> None:
    """Measure how often the gold entity is a candidate; write the alias table."""
    config, workdir = _config_and_workdir()
    from bert_export.corpus import candidates_export
    from bert_export.corpus.candidates import alias_table
    from bert_export.corpus.candidates_recall import measure_recall
    from bert_export.corpus.corpus import load_corpus
    from bert_export.corpus.records import BadRecords

    output = _OUTPUT.value
    if output:
        candidates_export.check_output(output, _OVERWRITE.value)
    bad = BadRecords(config.corpus.max_bad_records)
    corpus = load_corpus(config.corpus, workdir, bad)
    split = _SPLIT.value or config.eval.split
    recall = measure_recall(corpus, split, config.corpus.max_candidates)
    if output:
        candidates_export.write_aliases(
            output,
            alias_table(
                config.corpus.candidate_generation,
                corpus.aliases,
                corpus.entities.values(),
            ),
            corpus.entities.values(),
        )
    print(
        json.dumps(recall.to_dict(), indent=2, ensure_ascii=False)
        if _JSON.value
        else recall.table()
    )


def freeze() -> None:
    """Turn any TensorFlow 1 checkpoint into one file, proven equal."""
    checkpoint, output = _CHECKPOINT.value, _OUTPUT_GRAPH.value
    names = _OUTPUT_NODE_NAMES.value
    if not (checkpoint and names and output):
        raise UserError(
            "freeze: --checkpoint=PREFIX --output_node_names=NODE[,NODE] "
            "--output_graph=FILE are needed"
        )
    from bert_export.export.freeze import freeze_checkpoint

    frozen = freeze_checkpoint(
        checkpoint, names, output, _OVERWRITE.value, _CHECK_INPUTS.value
    )
    print(frozen.table())


def convert_corpus(output_dir_path: str) -> None:
    """Turn a corpus in another format into JSON Lines of ours."""
    if _INPUT_FORMAT.value not in CONVERTED_BUILDERS:
        raise UserError(
            "convert_corpus: --input_format is needed, one of "
            f"{', '.join(CONVERTED_BUILDERS)}"
        )
    config = CorpusConfig(
        builder=_INPUT_FORMAT.value,
        entities=_ENTITIES.value,
        mentions=_MENTIONS.value,
        dev_mentions=_DEV_MENTIONS.value,
        test_mentions=_TEST_MENTIONS.value,
        zeshel_candidates=tuple(_ZESHEL_CANDIDATES.value),
        pubtator_pmids=tuple(_PUBTATOR_PMIDS.value),
        table_columns=tuple(_TABLE_COLUMNS.value),
        context_words=_CONTEXT_WORDS.value,
    )
    try:
        check_converted(config)
        from bert_export.corpus import convert
        from bert_export.corpus.records import BadRecords

        bad = BadRecords(_MAX_BAD_RECORDS.value or 0)
        converted = convert.convert(
            config, Path(output_dir_path), bad, _OVERWRITE.value
        )
    except UserError as error:
        # The options are flags here, of the same names.
        raise UserError(str(error).replace("config.corpus.", "--")) from error
    print(converted.table())


def convert_tfjs(input_path: str, output_path: str) -> None:
    """Turn any model, INPUT, into a TensorFlow.js one, OUTPUT."""
    if _INPUT_FORMAT.value not in _TFJS_INPUTS:
        raise UserError(
            f"convert_tfjs: --input_format is needed, one of {', '.join(_TFJS_INPUTS)}"
        )
    # TensorFlow reads this when it is imported. With oneDNN its optimizer, which the
    # converter calls, makes operations that nothing but TensorFlow knows.
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
    from bert_export.export import tfjs_convert

    converted = tfjs_convert.convert(
        _INPUT_FORMAT.value,
        _OUTPUT_FORMAT.value,
        input_path,
        output_path,
        quantization=_QUANTIZATION.value,
        signature=_SIGNATURE.value,
        saved_model_tags=_SAVED_MODEL_TAGS.value,
        output_node_names=_OUTPUT_NODE_NAMES.value,
    )
    print(converted.table())


def train_vocab() -> None:
    """Learn a WordPiece or SentencePiece vocabulary from a corpus."""
    features, max_bad_records = FeaturesConfig(), _MAX_BAD_RECORDS.value or 0
    config = None
    output = _OUTPUT.value
    if _CONFIG.value is not None:
        config, workdir = _config_and_workdir()
        features, max_bad_records = config.features, config.corpus.max_bad_records
        output = output or config.model.vocab
    if not _VOCAB_SIZE.value:
        raise UserError("train_vocab: --vocab_size=N is needed, e.g. 8000")
    if not (_CORPUS.value or config):
        raise UserError(
            "train_vocab: --corpus=FILE[,FILE] or --config=configs/NAME.py is needed"
        )
    if not output:
        raise UserError("train_vocab: --output=FILE is needed")
    if os.path.exists(output) and not _OVERWRITE.value:
        raise UserError(
            f"train_vocab: {output} exists; name another --output, or replace it with "
            "--overwrite"
        )
    kind = _TYPE.value or (features.tokenizer if config else None)
    if not kind:
        raise UserError(
            f"train_vocab: --type is needed, one of {', '.join(TOKENIZER_FILES)}"
        )
    if kind != "sentencepiece" and _MODEL_TYPE.value:
        raise UserError(f"train_vocab: --model_type is of SentencePiece, not of {kind}")
    from bert_export.corpus import texts
    from bert_export.corpus.corpus import load_corpus
    from bert_export.corpus.records import BadRecords

    bad = BadRecords(max_bad_records)
    if _CORPUS.value:
        texts.require_files(_CORPUS.value)
        read = texts.file_texts(_CORPUS.value, bad)
    else:
        assert config is not None
        read = texts.corpus_texts(load_corpus(config.corpus, workdir, bad))
    from bert_export.features import train_vocab as learners

    lower_case = features.lower_case if _LOWER_CASE.value is None else _LOWER_CASE.value
    special_tokens = learners.SpecialTokens(
        features.pad_token, features.unk_token, features.cls_token, features.sep_token
    )
    if kind == "sentencepiece":
        content = learners.train_sentencepiece(
            read,
            _VOCAB_SIZE.value,
            model_type=_MODEL_TYPE.value or "unigram",
            character_coverage=_CHARACTER_COVERAGE.value,
            lower_case=lower_case,
            special_tokens=special_tokens,
        )
    else:
        content = learners.train_wordpiece(
            read,
            _VOCAB_SIZE.value,
            character_coverage=_CHARACTER_COVERAGE.value,
            lower_case=lower_case,
            special_tokens=special_tokens,
        )
    write_bytes(Path(output), content)
    print(f"{output}: a vocabulary of {learners.size(kind, content)} pieces")


def transfer_vocab(pretrained: str, vocab_path: str, output_dir_path: str) -> None:
    """Give pretrained weights another vocabulary."""
    if not os.path.isfile(vocab_path):
        raise UserError(f"transfer_vocab: there is no file {vocab_path}")
    if os.path.exists(output_dir_path):
        raise UserError(
            f"transfer_vocab: {output_dir_path} exists; name another OUTPUT_DIR, or "
            "remove it"
        )
    from bert_export.modeling import vocab_transfer

    transferred = vocab_transfer.transfer_vocab(
        pretrained, Path(vocab_path), Path(output_dir_path)
    )
    print(f"{output_dir_path}: {transferred}")


def demo() -> None:
    """Serve the page on which a tfjs artifact links in the browser."""
    artifact = _artifact(["tfjs"])
    from bert_export import demo_server

    demo_server.serve(artifact, _PORT.value, _HOST.value)


def rollback() -> None:
    """Put an earlier version back into production; withdraw all newer ones."""
    base = _model_base()
    served, now = base.rollback(_VERSION.value)
    print(f"{base}: version {now} is in production; before, servers had {served}")


def versions() -> None:
    """List a model's published versions: state, date, metrics, size."""
    from bert_export.release import published

    found = _model_base().versions()
    if _JSON.value:
        rows = [dataclasses.asdict(version) for version in found]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        print(published.versions_table(found))


def verify_version() -> None:
    """Check a published version: the hash of every file, and its smoke test."""
    base = _model_base()
    from bert_export.release import published

    version, checks = published.verify(base, _VERSION.value)
    print(published.checks_table(checks))
    if failed := [name for name, is_well, _ in checks if not is_well]:
        what = f"version {version}" if version else "the current version"
        raise Damaged(f"{base}: {what}: failed: {', '.join(failed)}")


COMMANDS: dict[str, Callable[..., None]] = {
    command.__name__: command
    for command in (
        run,
        prepare,
        train,
        evaluate,
        export,
        smoke_test,
        link,
        batch_link,
        retrain,
        demo,
        candidates,
        freeze,
        convert_corpus,
        convert_tfjs,
        train_vocab,
        transfer_vocab,
        rollback,
        versions,
        verify_version,
    )
}


def arguments(command: str) -> list[str]:
    """The names of what a command takes besides flags."""
    names = inspect.signature(COMMANDS[command]).parameters
    return [name.removesuffix("_path").upper() for name in names]


def usage() -> str:
    """The commands and the flags, a line or two each."""
    lines = [
        "bert-export COMMAND --config=configs/NAME.py --workdir=DIR "
        "[--config.any.leaf=value]",
        "",
        "Commands:",
    ]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<16}{command.__doc__}")
    lines += ["", "Flags:"]
    for flag in flags.FLAGS.get_key_flags_for_module(__name__):
        lines.append(f"  --{flag.name}")
        # absl adds lines of its own to the help of a flag that may be repeated.
        text = " ".join(flag.help.split())
        lines += textwrap.wrap(
            text, 80, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
    lines += [
        "",
        "Exit codes: 0 done, 1 a stage failed, 2 usage or bad input, 3 gate refused,",
        "4 another run is at work, 5 damage, 130 interrupted, 143 terminated.",
    ]
    return "\n".join(lines)


def _beam_workers() -> beam_tasks.Workers:
    from bert_export import beam_tasks

    beam_args = [word for args in _BEAM_ARGS.value for word in shlex.split(args)]
    workers = beam_tasks.Workers(
        _RUNNER.value or beam_tasks.DIRECT, _WORKERS.value, tuple(beam_args)
    )
    workers.check()
    return workers


def _workdir() -> Path:
    if not _WORKDIR.value:
        raise UserError("--workdir=DIR is needed: the directory of all that is written")
    return Path(_WORKDIR.value)


def _config_and_workdir() -> tuple[Config, Path]:
    """The workdir, and the config file or the workdir's config.json, with the flags."""
    workdir = _workdir()
    config = _CONFIG.value
    if config is None:
        recorded = workdir / CONFIG_FILE
        if not recorded.exists():
            raise UserError(
                f"--config=configs/NAME.py is needed, as there is no {recorded}"
            )
        config = config_file.get_config(str(recorded))
    values: dict[str, Any] = config.to_dict()
    for value, group, key in (
        (_DO_TRAIN.value, "train", "do_train"),
        (_USE_TPU.value, "train", "use_tpu"),
        (_INIT_CHECKPOINT.value, "model", "init_checkpoint"),
        (_WORDNET_DIR.value, "corpus", "wordnet_dir"),
        (_MAX_BAD_RECORDS.value, "corpus", "max_bad_records"),
        (_EXPORT_DIR.value, "export", "dir"),
    ):
        if value is not None:
            values[group][key] = value
    return resolve(values), workdir


def _model_base() -> ModelBase:
    """The model base of --model_base and --name, or of the config's name."""
    if not _MODEL_BASE.value:
        raise UserError("--model_base=DIR is needed: where published models are")
    name = _NAME.value
    if name is None and _CONFIG.value is not None:
        name = resolve(_CONFIG.value.to_dict()).name
    elif name is None and _WORKDIR.value:
        name = _config_and_workdir()[0].name
    elif name is None:
        raise UserError(
            "--name=NAME is needed, or --config or --workdir, whose config has it: "
            "the model below --model_base"
        )
    from bert_export.release.model_base import ModelBase

    return ModelBase(_MODEL_BASE.value, name)


def _artifact(formats: Sequence[str] = SAVED_MODELS) -> Path:
    """The version directory that --artifact names, or the newest of the workdir.

    Args:
      formats: what the workdir is searched for, in this order, each in every
        precision.
    """
    if _ARTIFACT.value:
        artifact = Path(_ARTIFACT.value)
        if not artifact.is_dir():
            raise UserError(f"--artifact: there is no directory {artifact}")
        return artifact
    config, workdir = _config_and_workdir()
    from bert_export import pipeline
    from bert_export.export import publish

    export_dir = pipeline.export_directory(config, workdir)
    for format_name in formats:
        for precision in PRECISIONS[format_name]:
            target = Target(format_name, precision)
            directory = pipeline.target_directory(export_dir, target)
            if versions := publish.versions(directory):
                return directory / str(versions[-1])
    raise UserError(
        f"no {' or '.join(formats)} in {export_dir}; export one, or name another "
        "artifact with --artifact=DIR"
    )
