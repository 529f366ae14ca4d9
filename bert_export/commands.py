"""One function a command; the only reader of flags."""

from __future__ import annotations

import inspect
import json
import os
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from bert_export import config_file
from bert_export.config import PRECISIONS, SAVED_MODELS, Config, Target, resolve
from bert_export.errors import UserError
from bert_export.workdir import CONFIG_FILE, record_config

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
    "max_bad_records", None, "Sets config.corpus.max_bad_records.", lower_bound=0
)
_EXPORT_DIR = flags.DEFINE_string("export_dir", None, "Sets config.export.dir.")
_ARTIFACT = flags.DEFINE_string(
    "artifact",
    None,
    "smoke_test, link, demo: the version directory to load. Default: the workdir's "
    "newest.",
)
_TEXT = flags.DEFINE_multi_string(
    "text", [], "link: a sentence with its mention in [[double brackets]]"
)
_INPUT = flags.DEFINE_string(
    "input",
    None,
    "link: a file of such sentences or of mentions as JSON Lines; - is standard input.",
)
_ENTITIES = flags.DEFINE_string(
    "entities", None, "link: entities to link to. Default: those of the corpus."
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
_JSON = flags.DEFINE_boolean("json", False, "link: print JSON Lines.")
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
    "overwrite", False, "freeze: replace an existing file."
)
_CHECK_INPUTS = flags.DEFINE_string(
    "check_inputs",
    None,
    "freeze: an .npz file with an array for each placeholder, to compare the frozen "
    "graph with the checkpoint on. Default: inputs are made up.",
)
_INPUT_FORMAT = flags.DEFINE_enum(
    "input_format",
    None,
    ["tfjs_layers_model", "keras", "tf_saved_model", "tf_frozen_model", "tf_hub"],
    "convert_tfjs: what INPUT is.",
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
    record_config(config, workdir)
    from bert_export import pipeline

    pipeline.prepare(config, workdir)


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


def convert_tfjs(input_path: str, output_path: str) -> None:
    """Turn any model, INPUT, into a TensorFlow.js one, OUTPUT."""
    if not _INPUT_FORMAT.value:
        raise UserError("convert_tfjs: --input_format is needed; see --help")
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


def demo() -> None:
    """Serve the page on which a tfjs artifact links in the browser."""
    artifact = _artifact(["tfjs"])
    from bert_export import demo_server

    demo_server.serve(artifact, _PORT.value, _HOST.value)


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
        demo,
        freeze,
        convert_tfjs,
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
        lines.append(f"  {name:<14}{command.__doc__}")
    lines += ["", "Flags:"]
    for flag in flags.FLAGS.get_key_flags_for_module(__name__):
        lines.append(f"  --{flag.name}")
        # absl adds lines of its own to the help of a flag that may be repeated.
        text = " ".join(flag.help.split())
        lines += textwrap.wrap(
            text, 80, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
    lines += ["", "Exit codes: 0 done, 2 usage or bad input, 1 a stage failed."]
    return "\n".join(lines)


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
