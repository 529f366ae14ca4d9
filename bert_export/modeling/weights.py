"""Where initial weights are found, and how they get into variables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import tensorflow as tf

from bert_export.config import ModelConfig
from bert_export.errors import UserError
from bert_export.files import package_path
from bert_export.modeling import checkpoint, conversion, hub, hugging_face
from bert_export.modeling.bert_config import BertConfig
from bert_export.modeling.linker import Linker

BERT_CONFIG_NAMES = ("bert_config.json", "config.json", "albert_config.json")
# By tokenizer.
VOCAB_NAMES = {
    "wordpiece": ("vocab.txt", "tokenizer.json"),
    "sentencepiece": ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
}
# The only variables that a BERT checkpoint need not have.
HEAD = "linker/"
_EXPECTED = f"{', '.join(hugging_face.WEIGHTS_FILES)} or one TensorFlow checkpoint"


@dataclasses.dataclass(frozen=True)
class PretrainedFiles:
    """What was found at `config.model.pretrained`."""

    # One of hugging_face.WEIGHTS_FILES, or a TensorFlow checkpoint's prefix.
    weights: Path
    bert_config: Path | None
    vocab: Path | None


@dataclasses.dataclass(frozen=True)
class InitReport:
    """What became of every variable of the model and of the checkpoint."""

    loaded: tuple[str, ...]
    # Left at random values; only the head's can be.
    new: tuple[str, ...]
    # In the checkpoint but not in the model, such as a pooler.
    unused: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{len(self.loaded)} variables loaded"
        if self.new:
            text += f"; new: {', '.join(self.new)}"
        if self.unused:
            text += f"; unused in the checkpoint: {', '.join(self.unused)}"
        return text


def pretrained_files(pretrained: str, tokenizer: str = "wordpiece") -> PretrainedFiles:
    """Finds weights, BERT config and vocabulary.

    Args:
      pretrained: a Hugging Face directory, the directory or prefix of a TensorFlow
        checkpoint, 'package:NAME/SUBDIR', or a TensorFlow Hub module: its directory,
        its archive, or 'hub:HANDLE'.
      tokenizer: as in `config.features`; its kind of vocabulary is looked for.

    Raises:
      UserError: no weights are there.
    """
    path = _resolve(pretrained)
    if path.is_dir():
        directory = path
        weights = _first_file(path, hugging_face.WEIGHTS_FILES) or _checkpoint_in(path)
    elif Path(f"{path}.index").is_file():
        directory, weights = path.parent, path
    else:
        raise UserError(
            f"{pretrained}: neither a directory with {_EXPECTED}, nor a checkpoint's "
            f"prefix ({path}.index is not there)"
        )
    return PretrainedFiles(
        weights,
        _first_file(directory, BERT_CONFIG_NAMES),
        _first_file(directory, VOCAB_NAMES[tokenizer]),
    )


def bert_config_path(model: ModelConfig) -> Path:
    """The BERT config to use: the one named, else the one beside the weights.

    Raises:
      UserError: there is none.
    """
    return _path_of(model, "bert_config", BERT_CONFIG_NAMES)


def vocab_path(model: ModelConfig, tokenizer: str = "wordpiece") -> Path:
    """The vocabulary to use: the one named, else the one beside the weights.

    Raises:
      UserError: there is none.
    """
    return _path_of(model, "vocab", VOCAB_NAMES[tokenizer], tokenizer)


def check_module(model: ModelConfig, bert: BertConfig, lower_case: bool) -> None:
    """Checks a config against the TensorFlow Hub module that it names, if it does.

    Args:
      model: names the module, and perhaps a BERT config or vocabulary of its own.
      bert: the encoder.
      lower_case: as in `config.features`.

    Raises:
      UserError: they contradict the module.
    """
    if model.pretrained and hub.is_handle(model.pretrained):
        hub.check(
            model.pretrained,
            _resolve(model.pretrained),
            bert,
            # Another vocabulary may be for other text.
            None if model.vocab else lower_case,
        )


def check_pretrained(pretrained: str, bert: BertConfig, bert_config: Path) -> None:
    """Checks that weights are those of an encoder, by names and shapes alone.

    Args:
      pretrained: see `pretrained_files`.
      bert: the encoder.
      bert_config: the file that describes it, for messages.

    Raises:
      UserError: there are no weights, they are damaged, or of another encoder.
    """
    source = conversion.open_source(pretrained_files(pretrained).weights)
    conversion.check(source, bert, bert_config)


def prepare_checkpoint(pretrained: str, workdir: Path) -> str:
    """The prefix of a checkpoint with Google's variable names.

    Weights of another layout are converted, once, into WORKDIR/init.

    Args:
      pretrained: see `pretrained_files`.
      workdir: the run's directory.

    Raises:
      UserError: there are no weights, they are damaged, or of no known encoder.
    """
    source = conversion.open_source(pretrained_files(pretrained).weights)
    if source.is_ours:
        return str(source.path)
    return conversion.convert(source, workdir / "init")


def initialize(prefix: str, variables: Sequence[tf.Variable]) -> InitReport:
    """Makes variables start from a checkpoint.

    In a graph their initializers read the checkpoint; eagerly they are assigned.

    Args:
      prefix: of the checkpoint.
      variables: the model's; those whose names begin with `linker/` may be missing
        in the checkpoint and keep their own initial values.

    Raises:
      UserError: the checkpoint is damaged, lacks a variable of the encoder or has it
        in another shape. The message lists all such variables.
    """
    by_name = {variable.name.removesuffix(":0"): variable for variable in variables}
    reader = checkpoint.open_reader(prefix)
    shapes = {name: variable.shape.as_list() for name, variable in by_name.items()}
    report = _compare(prefix, reader, shapes)
    missing = [name for name in report.new if not name.startswith(HEAD)]
    if missing:
        raise UserError(f"{prefix}: the checkpoint lacks {', '.join(missing)}")
    # Reading verifies checksums, so a damaged file is reported here and by name.
    for name in report.loaded:
        value = checkpoint.read(prefix, reader, name)
        if tf.executing_eagerly():
            by_name[name].assign(value)
    if not tf.executing_eagerly():
        tf.compat.v1.train.init_from_checkpoint(
            prefix, {name: by_name[name] for name in report.loaded}
        )
    return report


def check_trained(prefix: str, bert: BertConfig, num_span_fields: int) -> None:
    """Checks that a checkpoint holds the whole linker, head included, undamaged.

    Raises:
      UserError: it does not; the message lists what is missing or mis-shaped, or
        names what cannot be read.
    """
    with tf.Graph().as_default():
        shapes = {
            variable.op.name: variable.shape.as_list()
            for variable in Linker(bert, num_span_fields).variables
        }
    reader = checkpoint.open_reader(prefix)
    report = _compare(prefix, reader, shapes)
    for name in report.loaded:
        # What is read is held against its checksum.
        checkpoint.read(prefix, reader, name)
    if report.new:
        raise UserError(
            f"{prefix}: the checkpoint lacks {', '.join(report.new)}; it is not a "
            "linker trained with this config"
        )


def _compare(
    prefix: str,
    reader: tf.train.CheckpointReader,
    shapes: Mapping[str, Sequence[int]],
) -> InitReport:
    """Sorts variables by where they are; raises UserError where shapes differ."""
    found = reader.get_variable_to_shape_map()
    wrong = [
        f"{name} (expected {list(shape)}, found {found[name]})"
        for name, shape in sorted(shapes.items())
        if name in found and list(shape) != found[name]
    ]
    if wrong:
        raise UserError(f"{prefix}: wrong shape: {', '.join(wrong)}")
    return InitReport(
        loaded=tuple(sorted(shapes.keys() & found.keys())),
        new=tuple(sorted(shapes.keys() - found.keys())),
        unused=tuple(
            name
            for name in sorted(found.keys() - shapes.keys())
            if not name.endswith(checkpoint.NO_WEIGHTS)
        ),
    )


def _resolve(pretrained: str) -> Path:
    """The path that `pretrained` stands for."""
    if hub.is_handle(pretrained):
        return hub.convert(pretrained)
    return package_path(pretrained)


def _checkpoint_in(directory: Path) -> Path:
    """The prefix of a directory's checkpoint, the newest of a training run."""
    latest = tf.train.latest_checkpoint(directory)
    if latest is not None:
        return Path(latest)
    prefixes = [path.with_suffix("") for path in sorted(directory.glob("*.index"))]
    if len(prefixes) != 1:
        found = ", ".join(prefix.name for prefix in prefixes) or "none"
        raise UserError(
            f"{directory}: expected {_EXPECTED}, found checkpoints: {found}"
        )
    return prefixes[0]


def _first_file(directory: Path, names: Sequence[str]) -> Path | None:
    paths = (directory / name for name in names)
    return next((path for path in paths if path.is_file()), None)


def _path_of(
    model: ModelConfig, field: str, names: Sequence[str], tokenizer: str = "wordpiece"
) -> Path:
    """The file named by a field of `model`, else found beside its weights."""
    named = getattr(model, field)
    if named is not None:
        path = _resolve(named)
        if not path.is_file():
            raise UserError(f"model.{field}: there is no file {path}")
        return path
    places = [place for place in (model.pretrained, model.init_checkpoint) if place]
    for place in places:
        found = getattr(pretrained_files(place, tokenizer), field)
        if found is not None:
            return found
    where = f" in {' or '.join(places)}" if places else ""
    raise UserError(
        f"model.{field} is not set, and there is no {' or '.join(names)}{where}"
    )
