"""The config's schema: typed, validated before anything heavy, JSON round trip.

Each option is documented beside its default. An experiment (`configs/NAME.py`)
starts from `default_config()`, an `ml_collections.ConfigDict` whose leaves the
command line can override (`--config.train.learning_rate=1e-4`); `resolve` turns the
result into the frozen dataclasses that the rest of the program reads.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from bert_export.errors import UserError

BUILDERS = (
    "jsonl",
    "wordnet",
    "kenet",
    "ccks",
    "zeshel",
    "aida",
    "pubtator",
    "table",
    "docbin",
)
# Those that convert a corpus in another format, and what each cannot do without.
CONVERTED_BUILDERS = {
    "ccks": ("entities", "mentions"),
    "zeshel": ("mentions",),
    "aida": ("mentions",),
    "pubtator": ("mentions",),
    "table": ("entities", "mentions"),
    "docbin": ("entities", "mentions"),
}
# Our names of a table's columns: of entities, then of mentions.
TABLE_COLUMNS = (
    "id",
    "name",
    "aliases",
    "description",
    "text",
    "start",
    "end",
    "marked_text",
    "gold",
    "candidates",
    "split",
)
# How candidates are found for a mention that has none of its own.
CANDIDATE_GENERATORS = ("exact", "folded", "ngram")
LOSSES = ("listwise", "pointwise")
CANDIDATE_FIELDS = ("name", "aliases", "description")
# The tokenizers, and the file that holds each one's vocabulary in an artifact.
TOKENIZER_FILES = {"wordpiece": "vocab.txt", "sentencepiece": "spiece.model"}
# The precisions that each format can be exported in. 'int8_calibrated' also
# quantizes activations, with ranges measured on training requests.
PRECISIONS = {
    "saved_model": ("float32",),
    "serving_model": ("float32", "bfloat16", "float16"),
    "frozen_graph": ("float32", "bfloat16", "float16"),
    "onnx": ("float32", "float16", "int8_dynamic", "int8_calibrated"),
    "openvino": ("float32", "float16", "int8_dynamic", "int8_calibrated"),
    "tflite": ("float32", "float16", "int8_dynamic", "int8_calibrated"),
    "tfjs": ("float32", "float16", "uint8"),
    "hub": ("float32",),
    "huggingface": ("float32",),
}
# Of `retrain`, in their order.
RETRAIN_STAGES = ("prepare", "train", "evaluate", "export", "gate", "publish")
# The formats that TensorFlow's model server loads.
SAVED_MODELS = ("saved_model", "serving_model")
# What a model may be called: part of paths and addresses.
MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """Where entities and mentions come from."""

    # 'jsonl' reads the files named below; 'wordnet', and 'kenet', the Turkish one,
    # are built in the workdir.
    builder: str = "jsonl"
    # JSON Lines of entities, gzip accepted. For other formats see docs/corpora.md.
    entities: str | None = None
    # JSON Lines of mentions. Split by a hash of the text unless dev and test
    # mentions have files of their own.
    mentions: str | None = None
    dev_mentions: str | None = None
    test_mentions: str | None = None
    dev_fraction: float = 0.1
    test_fraction: float = 0.1
    # The directory of WordNet's data.* and index.* files; searched for when unset.
    wordnet_dir: str | None = None
    # Train also on definitions, whose words WordNet's pointers disambiguate.
    wordnet_definitions: bool = False
    # Train also on examples with a synonym in the mention's place.
    wordnet_synonyms: bool = False
    # Train also on the quotations of GCIDE (Webster's), each with the sense it shows.
    wordnet_gcide: bool = False
    # GCIDE's gcide.dict.dz; unset: Debian's, fetched where it is not installed.
    gcide: str | None = None
    # KeNet's turkish_wordnet.xml; unset: that of the package nlptoolkit-wordnet.
    kenet: str | None = None
    # Train also on definitions, whose words KeNet's pointers disambiguate.
    kenet_definitions: bool = False
    # zeshel: files of TF-IDF candidates, or directories of them.
    zeshel_candidates: tuple[str, ...] = ()
    # pubtator: lists of the PMIDs of train, dev and test; (): by files, or by hash.
    pubtator_pmids: tuple[str, ...] = ()
    # table: 'OURS=THEIRS' for each column whose name differs from ours.
    table_columns: tuple[str, ...] = ()
    # zeshel, aida, pubtator, docbin: words of a document kept on each side of a
    # mention.
    context_words: int = 128
    # Where a mention has no candidates of its own: 'exact' finds names and aliases as
    # they are written, 'folded' whatever their case and form, 'ngram' then also those
    # spelt alike, for misspellings and inflected forms.
    candidate_generation: str = "folded"
    # Candidates a mention keeps, from its own list or from the alias table.
    max_candidates: int = 16
    # Bad records tolerated (and left out) before the run stops.
    max_bad_records: int = 0


@dataclasses.dataclass(frozen=True)
class FeaturesConfig:
    """How a (text, mention, candidate) triple becomes tensors."""

    # Word pieces of a pair, [CLS] and both [SEP] included.
    max_seq_length: int = 128
    # What cuts texts into word pieces: 'wordpiece', or 'sentencepiece' with a .model
    # file as vocabulary.
    tokenizer: str = "wordpiece"
    # Lower-case texts, as an uncased vocabulary expects; 'wordpiece' strips accents,
    # too.
    lower_case: bool = True
    # The special tokens' names in the vocabulary.
    cls_token: str = "[CLS]"
    sep_token: str = "[SEP]"
    pad_token: str = "[PAD]"
    unk_token: str = "[UNK]"
    # The parts of an entity that make segment B, in this order.
    candidate_fields: tuple[str, ...] = CANDIDATE_FIELDS
    # A word piece put on both sides of the mention; '' for none.
    mention_marker: str = ""
    # Feature names, as serving clients send them.
    input_ids: str = "input_ids"
    input_mask: str = "input_mask"
    segment_ids: str = "segment_ids"
    # (first piece, last piece) of the mention; () makes a plain pair classifier.
    span_fields: tuple[str, ...] = ("start_ps", "end_ps")
    label_ids: str = "label_ids"
    # Files a split is written to.
    num_shards: int = 4


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The encoder and where its weights come from."""

    # A Hugging Face directory of BERT, ALBERT, ELECTRA or DistilBERT; one of Google's
    # checkpoints of the first three (its prefix or directory); 'package:NAME/SUBDIR',
    # a directory inside an installed Python package; or a TensorFlow Hub module: its
    # directory, its .tar.gz, or 'hub:HANDLE'. Unset: random weights.
    pretrained: str | None = None
    # BERT config JSON and vocabulary; unset: found beside the pretrained weights.
    bert_config: str | None = None
    vocab: str | None = None
    # A checkpoint of this program or of BERT whose weights take the place of the
    # pretrained ones; when not training, the trained checkpoint to export.
    init_checkpoint: str | None = None


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Fine-tuning."""

    # False: evaluate and export model.init_checkpoint, or the workdir's newest.
    do_train: bool = True
    # 'listwise': softmax over a mention's candidates plus pointwise_weight times
    # the cross-entropy of each pair. 'pointwise': the latter alone.
    loss: str = "listwise"
    pointwise_weight: float = 0.2
    epochs: float = 3.0
    # Ends training early, at this many optimizer steps.
    max_steps: int | None = None
    # Whole mentions a step; their candidates make the batch's pairs.
    mentions_per_batch: int = 8
    learning_rate: float = 1e-4
    # The part of all steps during which the learning rate rises from 0.
    warmup_fraction: float = 0.1
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    seed: int = 17
    # Mixed precision by grappler's auto_mixed_precision_onednn_bfloat16.
    bfloat16: bool = False
    # TPUEstimator in place of Estimator. Runs on a CPU, too.
    use_tpu: bool = False
    # Mentions shuffled in memory at a time.
    shuffle_mentions: int = 50000
    save_checkpoints_steps: int = 500
    keep_checkpoint_max: int = 3
    # Newest checkpoints whose mean is scored and kept as the best.
    average_checkpoints: int = 1
    log_steps: int = 50


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation during and after training."""

    # Whole mentions a batch.
    mentions_per_batch: int = 16
    # Dev mentions scored at each checkpoint to find the best one; unset: all.
    checkpoint_mentions: int | None = None
    # Thresholds are chosen on 'dev' whatever split is reported.
    split: str = "test"
    # Mentions of each split that are scored after training; unset: all.
    max_mentions: int | None = None


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Artifacts and their proof."""

    # Versions are written here; unset: WORKDIR/export.
    dir: str | None = None
    # Any of PRECISIONS' formats, each FORMAT or FORMAT/PRECISION.
    formats: tuple[str, ...] = ("saved_model",)
    # Of the formats that do not name theirs.
    precision: str = "float32"
    # Points of link accuracy that a compressed artifact may lose.
    max_accuracy_drop: float = 0.5
    # Held-out mentions on which each artifact is compared with the trained model.
    proof_mentions: int = 500
    # Measure cold start, memory and latency of each artifact, beside baselines.
    benchmark: bool = True
    # Training requests from which int8_calibrated takes its ranges.
    calibration_requests: int = 256
    # Requests recorded from estimator.predict and replayed by the smoke test.
    golden_requests: int = 32
    # Requests stored for TF Serving to replay when it loads the model.
    warmup_requests: int = 4


@dataclasses.dataclass(frozen=True)
class GateConfig:
    """What a retrained model must hold against the one in production."""

    # JSON Lines of mentions that stay the same from run to run; unset: none.
    golden_mentions: str | None = None
    # Mentions of eval.split that both models score; unset: all.
    max_mentions: int | None = None
    # Points that link accuracy, MRR and NIL F1 may fall, at the lower end of the
    # interval that `confidence` gives.
    max_drop: float = 2.0
    # The same on the golden mentions.
    golden_max_drop: float = 2.0
    # Points of link accuracy that a slice of min_slice_mentions or more may fall.
    slice_max_drop: float = 10.0
    min_slice_mentions: int = 100
    # Of the paired bootstrap's one-sided interval.
    confidence: float = 0.95
    bootstrap_samples: int = 2000
    # Percent of the held-out mentions that even a first model must link rightly.
    min_link_accuracy: float = 0.0
    # Times the size, and the median latency, of the model in production.
    max_size_ratio: float = 1.25
    max_latency_ratio: float = 1.5


@dataclasses.dataclass(frozen=True)
class ReleaseConfig:
    """The model base."""

    # Versions that stay in the model base; the current and the previous always do.
    keep_versions: int = 5
    # Runs whose reports and TensorBoard events stay in the workdir of `retrain`.
    keep_runs: int = 30


@dataclasses.dataclass(frozen=True)
class Target:
    """An artifact to write."""

    format: str
    precision: str

    @property
    def name(self) -> str:
        """'onnx_int8_dynamic'; the format alone where nothing is compressed."""
        if self.precision == "float32":
            return self.format
        return f"{self.format}_{self.precision}"


def export_targets(export: ExportConfig) -> list[Target]:
    """The artifacts that `formats` and `precision` name, each once, in their order.

    Raises:
      UserError: an unknown format or precision, or one that the format lacks.
    """
    targets: dict[Target, None] = {}
    for entry in export.formats:
        format_name, slash, precision = entry.partition("/")
        if format_name not in PRECISIONS:
            near = difflib.get_close_matches(format_name, PRECISIONS, n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise UserError(
                f"config.export.formats: unknown format {format_name!r}{hint} "
                f"Known: {', '.join(PRECISIONS)}"
            )
        if not slash:
            precision = export.precision
        if precision not in PRECISIONS[format_name]:
            key = "formats" if slash else "precision"
            raise UserError(
                f"config.export.{key}: {format_name} is written in "
                f"{', '.join(PRECISIONS[format_name])}, found {precision!r}; a format "
                "may name its own, as in onnx/int8_dynamic"
            )
        targets[Target(format_name, precision)] = None
    if not targets:
        raise UserError("config.export.formats: expected a format or more, found none")
    return list(targets)


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides a run's result."""

    # Names the model in manifests and reports.
    name: str = "linker"
    corpus: CorpusConfig = CorpusConfig()
    features: FeaturesConfig = FeaturesConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    export: ExportConfig = ExportConfig()
    gate: GateConfig = GateConfig()
    release: ReleaseConfig = ReleaseConfig()

    def to_json(self) -> str:
        """This config as JSON that `read_json` reads back unchanged."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"


def default_config() -> config_dict.ConfigDict:
    """All options with their defaults, for a `configs/NAME.py` to change.

    The result is locked and typed: an unknown key or a wrong type fails where it is
    written.
    """
    return _to_config_dict(Config()).lock()


def check_key(path: str) -> None:
    """Checks that a dotted path, such as 'train.seed', names an option.

    Raises:
      UserError: it does not; one line that names the key.
    """
    node: Any = Config
    key = "config"
    for name in path.split("."):
        if not dataclasses.is_dataclass(node):
            raise UserError(f"{key}.{name}: unknown key; {key} is no group of options")
        hints = typing.get_type_hints(node)
        _check_known(name, hints, key)
        node, key = hints[name], f"{key}.{name}"
    if dataclasses.is_dataclass(node):
        options = ", ".join(field.name for field in dataclasses.fields(node))
        raise UserError(f"{key}: a group; set one of its options: {options}")


def resolve(values: Mapping[str, Any]) -> Config:
    """Checks `values` against the schema and gives the frozen config.

    Args:
      values: nested mapping, e.g. the ConfigDict of a config file after the command
        line's overrides, or a parsed config.json.

    Raises:
      UserError: an unknown key, a wrong type or an impossible value; one line that
        names the key.
    """
    if isinstance(values, config_dict.ConfigDict):
        values = values.to_dict()
    config = _build(Config, values, "config")
    _check_values(config)
    return config


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The nested mapping in a config.json that an earlier run wrote.

    Raises:
      UserError: the file is missing or is not a JSON object.
    """
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
    except OSError as error:
        raise UserError(f"--config: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"--config: {path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"--config: {path} must hold a JSON object of options")
    return values


def _to_config_dict(node: Any) -> config_dict.ConfigDict:
    hints = typing.get_type_hints(type(node))
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            fields[field.name] = _to_config_dict(value)
        elif value is None:
            fields[field.name] = config_dict.placeholder(
                _without_none(hints[field.name])
            )
        else:
            fields[field.name] = value
    return config_dict.ConfigDict(fields)


def _without_none(hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        (hint,) = (arm for arm in typing.get_args(hint) if arm is not type(None))
    return hint


def _build(cls: type, values: Any, key: str) -> Any:
    if not isinstance(values, Mapping):
        raise UserError(f"{key}: expected a group of options, found {values!r}")
    hints = typing.get_type_hints(cls)
    for name in values:
        _check_known(name, hints, key)
    arguments = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            arguments[name] = _build(hints[name], value, f"{key}.{name}")
        else:
            arguments[name] = _typed(hints[name], value, f"{key}.{name}")
    return cls(**arguments)


def _check_known(name: Any, hints: Mapping[str, Any], key: str) -> None:
    if name not in hints:
        near = difflib.get_close_matches(str(name), hints, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(hints)}"
        raise UserError(f"{key}.{name}: unknown key; {hint}")


def _typed(hint: Any, value: Any, key: str) -> Any:
    optional = isinstance(hint, types.UnionType)
    expected = _without_none(hint)
    if value is None and optional:
        return None
    if typing.get_origin(expected) is tuple:
        if isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
            # The command line gives 'a,b' as a tuple of one.
            parts = (part.strip() for item in value for part in item.split(","))
            return tuple(filter(None, parts))
        raise UserError(f"{key}: expected a list of strings, found {value!r}")
    if expected is float and type(value) is int:
        return float(value)
    if type(value) is not expected:
        raise UserError(f"{key}: expected {expected.__name__}, found {value!r}")
    return value


def check_converted(corpus: CorpusConfig) -> None:
    """Checks the options of the builders that convert another format.

    Raises:
      UserError: one is missing, impossible, or of another builder; one line that names
        the key.
    """

    def require(holds: bool, key: str, expected: str) -> None:
        if not holds:
            found = getattr(corpus, key)
            raise UserError(
                f"config.corpus.{key}: expected {expected}, found {found!r}"
            )

    for key in CONVERTED_BUILDERS.get(corpus.builder, ()):
        require(bool(getattr(corpus, key)), key, f"a path, for {corpus.builder}")
    for builder, key in (
        ("zeshel", "zeshel_candidates"),
        ("pubtator", "pubtator_pmids"),
        ("table", "table_columns"),
    ):
        require(
            corpus.builder == builder or not getattr(corpus, key),
            key,
            f"nothing, as it is only for the builder {builder}",
        )
    if corpus.builder == "aida":
        for key in ("dev_mentions", "test_mentions"):
            require(
                not getattr(corpus, key), key, "nothing, as mentions has all splits"
            )
    require(
        len(corpus.pubtator_pmids) in (0, 3), "pubtator_pmids", "three files or none"
    )
    require(
        not (corpus.pubtator_pmids and corpus.dev_mentions),
        "pubtator_pmids",
        "nothing, as dev_mentions and test_mentions are set",
    )
    ours = [entry.partition("=")[0].strip() for entry in corpus.table_columns]
    for entry, name in zip(corpus.table_columns, ours):
        if name not in TABLE_COLUMNS or not entry.partition("=")[2].strip():
            near = difflib.get_close_matches(name, TABLE_COLUMNS, n=1)
            hint = f"; did you mean {near[0]}?" if near and near[0] != name else ""
            raise UserError(
                "config.corpus.table_columns: expected OURS=THEIRS with OURS one of"
                f" {', '.join(TABLE_COLUMNS)}; found {entry!r}{hint}"
            )
    require(len(set(ours)) == len(ours), "table_columns", "each of our names once")
    require(corpus.context_words >= 1, "context_words", "1 or more")


def _check_values(config: Config) -> None:
    """Refuses what no stage could work with."""

    def require(holds: bool, key: str, expected: str) -> None:
        if not holds:
            value: Any = config
            for part in key.split("."):
                value = getattr(value, part)
            raise UserError(f"config.{key}: expected {expected}, found {value!r}")

    corpus, features, train = config.corpus, config.features, config.train
    require(
        MODEL_NAME.fullmatch(config.name) is not None,
        "name",
        "letters, digits, '_', '-' and '.' only, no '-' or '.' first",
    )
    require(corpus.builder in BUILDERS, "corpus.builder", f"one of {BUILDERS}")
    if corpus.builder == "jsonl":
        for key in ("entities", "mentions"):
            require(bool(getattr(corpus, key)), f"corpus.{key}", "a file's path")
    check_converted(corpus)
    require(
        corpus.candidate_generation in CANDIDATE_GENERATORS,
        "corpus.candidate_generation",
        f"one of {CANDIDATE_GENERATORS}",
    )
    require(corpus.max_candidates >= 1, "corpus.max_candidates", "1 or more")
    require(corpus.max_bad_records >= 0, "corpus.max_bad_records", "0 or more")
    for key in ("dev_fraction", "test_fraction"):
        require(0 <= getattr(corpus, key) < 1, f"corpus.{key}", "0 or more, below 1")
    require(
        corpus.dev_fraction + corpus.test_fraction < 1,
        "corpus.dev_fraction",
        "less than 1 together with corpus.test_fraction",
    )
    # [CLS] and two [SEP], and a piece or more of text and of candidate.
    require(features.max_seq_length >= 8, "features.max_seq_length", "8 or more")
    require(
        features.tokenizer in TOKENIZER_FILES,
        "features.tokenizer",
        f"one of {tuple(TOKENIZER_FILES)}",
    )
    tokens: set[str] = set()
    for key in ("cls_token", "sep_token", "pad_token", "unk_token"):
        token = getattr(features, key)
        expected = "a piece of the vocabulary that no other special token is"
        require(bool(token) and token not in tokens, f"features.{key}", expected)
        if features.tokenizer == "wordpiece":
            expected = "a name with punctuation, so that no word of a text is it"
            require(not token.isalnum(), f"features.{key}", expected)
        tokens.add(token)
    require(
        len(features.span_fields) in (0, 2), "features.span_fields", "two names or none"
    )
    require(
        bool(features.candidate_fields)
        and set(features.candidate_fields) <= set(CANDIDATE_FIELDS),
        "features.candidate_fields",
        f"some of {CANDIDATE_FIELDS}",
    )
    names = [
        features.input_ids,
        features.input_mask,
        features.segment_ids,
        *features.span_fields,
        features.label_ids,
        "mention_id",
    ]
    require(
        len(set(names)) == len(names) and all(names),
        "features",
        "feature names that differ from each other and from 'mention_id'",
    )
    require(features.num_shards >= 1, "features.num_shards", "1 or more")
    if not config.model.pretrained:
        for key in ("bert_config", "vocab"):
            require(
                bool(getattr(config.model, key)),
                f"model.{key}",
                "a file's path, as model.pretrained is unset",
            )
    require(train.loss in LOSSES, "train.loss", f"one of {LOSSES}")
    require(train.max_steps is None or train.max_steps >= 1, "train.max_steps", "1 up")
    require(train.learning_rate > 0, "train.learning_rate", "more than 0")
    require(train.epochs > 0, "train.epochs", "more than 0")
    require(train.clip_norm > 0, "train.clip_norm", "more than 0")
    require(0 <= train.warmup_fraction < 1, "train.warmup_fraction", "0 up, below 1")
    for key in ("weight_decay", "pointwise_weight", "seed"):
        require(getattr(train, key) >= 0, f"train.{key}", "0 or more")
    for key in (
        "mentions_per_batch",
        "shuffle_mentions",
        "save_checkpoints_steps",
        "keep_checkpoint_max",
        "average_checkpoints",
        "log_steps",
    ):
        require(getattr(train, key) >= 1, f"train.{key}", "1 or more")
    require(
        train.average_checkpoints <= train.keep_checkpoint_max,
        "train.average_checkpoints",
        "no more than train.keep_checkpoint_max",
    )
    for key in (
        "learning_rate",
        "epochs",
        "clip_norm",
        "weight_decay",
        "pointwise_weight",
    ):
        require(math.isfinite(getattr(train, key)), f"train.{key}", "a finite number")
    require(config.eval.mentions_per_batch >= 1, "eval.mentions_per_batch", "1 or more")
    require(config.eval.split in ("dev", "test"), "eval.split", "'dev' or 'test'")
    for key in ("checkpoint_mentions", "max_mentions"):
        value = getattr(config.eval, key)
        require(value is None or value >= 1, f"eval.{key}", "1 or more")
    export_targets(config.export)
    drop = config.export.max_accuracy_drop
    require(0 <= drop <= 100, "export.max_accuracy_drop", "0 to 100 points")
    for key in ("proof_mentions", "calibration_requests"):
        require(getattr(config.export, key) >= 1, f"export.{key}", "1 or more")
    require(config.export.golden_requests >= 1, "export.golden_requests", "1 or more")
    require(
        0 <= config.export.warmup_requests <= 1000,
        "export.warmup_requests",
        "0 to 1000, TF Serving's limit",
    )
    gate = config.gate
    for key in ("max_drop", "golden_max_drop", "slice_max_drop", "min_link_accuracy"):
        require(0 <= getattr(gate, key) <= 100, f"gate.{key}", "0 to 100 points")
    for key in ("min_slice_mentions", "bootstrap_samples"):
        require(getattr(gate, key) >= 1, f"gate.{key}", "1 or more")
    require(0.5 <= gate.confidence < 1, "gate.confidence", "0.5 up, below 1")
    for key in ("max_size_ratio", "max_latency_ratio"):
        value = getattr(gate, key)
        require(value > 0 and math.isfinite(value), f"gate.{key}", "more than 0")
    value = gate.max_mentions
    require(value is None or value >= 1, "gate.max_mentions", "1 or more")
    require(config.release.keep_versions >= 2, "release.keep_versions", "2 or more")
    require(config.release.keep_runs >= 1, "release.keep_runs", "1 or more")
