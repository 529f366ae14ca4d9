"""TensorFlow Hub's BERT encoders, TF2's and TF1's, as checkpoints of ours."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from bert_export.errors import UserError
from bert_export.files import new_directory, sha256_file, write_json
from bert_export.modeling import conversion, layouts
from bert_export.modeling.bert_config import BertConfig
from bert_export.modeling.encoder import BertEncoder

# Before a handle where a path is expected.
PREFIX = "hub:"
SAVED_MODEL = tf.saved_model.SAVED_MODEL_FILENAME_PB
ARCHIVES = (".tar.gz", ".tgz", ".tar")
CONFIG_NAME = "bert_config.json"
# What a module's assets are called in the converted directory, by their suffix.
VOCAB_NAMES = {".txt": "vocab.txt", ".model": "spiece.model"}
_MODULE_FILE = "hub_module.json"
# Part of the fingerprint; to be raised when the conversion changes.
FORMAT = "1"
# Both of TensorFlow Hub and of tf-models-official; ours, as shapes do not tell them.
ACTIVATIONS = ("gelu_new", "gelu")
# Of all of Google's models but the tiniest, whose heads are found by trying.
_HEAD_SIZE = 64
# How far hidden states may be from the module's own; a wrong activation or number of
# heads is farther.
_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class _Contents:
    """What was read from a module.

    Attributes:
      weights: the encoder's, float32, by our names.
      heads: of its attention; None: the variables do not tell.
      layers: as many as the module returns the states of; None: of none.
      states: the module's hidden states [batch, seq_length, hidden] for `_try_inputs`.
      vocab: the asset.
      lower_case: whether its text was lower-cased.
    """

    weights: dict[str, np.ndarray]
    heads: int | None
    layers: int | None
    states: np.ndarray
    vocab: Path | None
    lower_case: bool | None


def is_handle(pretrained: str) -> bool:
    """Whether it names a module: after PREFIX, or as its directory or archive."""
    path = Path(pretrained)
    return (
        pretrained.startswith(PREFIX)
        or (path / SAVED_MODEL).is_file()
        or (pretrained.endswith(ARCHIVES) and path.is_file())
    )


def convert(handle: str) -> Path:
    """Converts a module, once, into TensorFlow Hub's cache directory.

    That is TFHUB_CACHE_DIR, else a directory for temporary files. The BERT config is
    derived from the shapes of the variables. What shapes do not tell (the activation
    and, of TF1 modules, the number of attention heads) is found by trying: the
    encoder must compute the module's own hidden states.

    Args:
      handle: with or without PREFIX, a module's directory, a .tar.gz of it, or
        whatever tensorflow_hub resolves: an address, or one that is in its cache.

    Returns:
      A directory with a checkpoint, CONFIG_NAME and, if the module has it, the
      vocabulary.

    Raises:
      UserError: the handle cannot be resolved, or the module is damaged or no BERT
        encoder.
    """
    from tensorflow_hub import resolver

    with _directory(handle.removeprefix(PREFIX)) as (path, fingerprint):
        cache = Path(resolver.tfhub_cache_dir(use_temp=True))
        target = cache / f"bert_export-{fingerprint[:16]}-{FORMAT}"
        if not target.exists():
            contents = _read(handle, path)
            with new_directory(target) as partial:
                _write(handle, contents, partial)
    return target


def check(
    handle: str, converted: Path, bert: BertConfig, lower_case: bool | None
) -> None:
    """Checks a config against a module, in what shapes of variables do not tell.

    Args:
      handle: for messages.
      converted: what `convert` returned.
      bert: the encoder.
      lower_case: whether text is lower-cased; None: not to be checked.

    Raises:
      UserError: they differ.
    """
    own = BertConfig.from_json(converted / CONFIG_NAME)
    for key in ("num_attention_heads", "approximate_gelu", "layer_norm_eps"):
        found, expected = getattr(bert, key), getattr(own, key)
        if found != expected:
            name = "hidden_act" if key == "approximate_gelu" else key
            raise UserError(
                f"model.bert_config: {name} is {getattr(bert, name)}, but {handle} "
                f"computes with {getattr(own, name)}"
            )
    module = json.loads((converted / _MODULE_FILE).read_text(encoding="utf-8"))
    expected = module["lower_case"]
    if None not in (lower_case, expected) and lower_case != expected:
        raise UserError(
            f"{handle}: the module's vocabulary is for text with do_lower_case="
            f"{expected}, but features.lower_case is {lower_case}; set "
            f"--config.features.lower_case={expected}"
        )


@contextlib.contextmanager
def _directory(handle: str) -> Iterator[tuple[Path, str]]:
    """A module's directory for a while, and what tells it from others."""
    path = Path(handle)
    if handle.endswith(ARCHIVES) and path.is_file():
        with tempfile.TemporaryDirectory(prefix="bert_export_hub_") as temporary:
            try:
                with tarfile.open(path) as archive:
                    archive.extractall(temporary, filter="data")
            except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
                raise UserError(
                    f"{handle}: cannot unpack the archive, it may be incomplete: "
                    f"{_first_line(error)}"
                ) from error
            found = sorted(Path(temporary).rglob(SAVED_MODEL))
            if not found:
                raise UserError(f"{handle}: there is no {SAVED_MODEL} in the archive")
            yield found[0].parent, sha256_file(path)
        return
    if not path.is_dir():
        import tensorflow_hub

        try:
            path = Path(os.fsdecode(tensorflow_hub.resolve(handle)))
        # Whatever its resolvers, urllib and TensorFlow's file systems raise.
        except Exception as error:
            raise UserError(
                f"{handle}: TensorFlow Hub cannot get this module: "
                f"{_first_line(error)}. Without network, name a directory or a "
                ".tar.gz that has it"
            ) from error
    if not (path / SAVED_MODEL).is_file():
        raise UserError(f"{handle}: there is no {SAVED_MODEL} in {path}")
    digest = hashlib.sha256()
    # The index has the checksums of all variables.
    names = (SAVED_MODEL, "tfhub_module.pb", "variables/variables.index")
    for file in [*(path / name for name in names), *sorted(path.glob("assets/*"))]:
        if file.is_file():
            digest.update(f"{file.name} {sha256_file(file)}\n".encode())
    yield path, digest.hexdigest()


def _read(handle: str, directory: Path) -> _Contents:
    """Loads a module and asks for its hidden states of `_try_inputs`."""
    import tensorflow_hub

    with tf.init_scope():  # Eager, whatever graph is being built.
        try:
            module = tensorflow_hub.load(str(directory))
            variables = {
                variable.name.removesuffix(":0"): variable.numpy()
                for variable in module.variables
            }
        # A damaged SavedModel fails in many ways.
        except Exception as error:
            raise UserError(
                f"{handle}: cannot read the module, it may be damaged or incomplete: "
                f"{_first_line(error)}"
            ) from error
        layout = layouts.recognize(variables)
        weights = _encoder_weights(variables, layout) if layout else {}
        outputs = _call(module, _try_inputs(weights)) if weights else None
    if outputs is None or "sequence_output" not in outputs:
        some = ", ".join(sorted(variables)[:3]) or "none"
        signatures = ", ".join(sorted(module.signatures or ())) or "none"
        raise UserError(
            f"{handle}: no BERT encoder of TensorFlow Hub; found the variables "
            f"{some}{', …' if len(variables) > 3 else ''} and the signatures "
            f"{signatures}, expected BERT's variables, and hidden states "
            "(sequence_output) for input_word_ids, input_mask and input_type_ids"
        )
    return _Contents(
        weights,
        _heads(variables),
        len(outputs["encoder_outputs"]) if "encoder_outputs" in outputs else None,
        outputs["sequence_output"].numpy(),
        _vocab(module, directory),
        _lower_case(module),
    )


def _call(module: Any, inputs: Sequence[np.ndarray]) -> Mapping[str, Any] | None:
    """A module's outputs for ids, mask and segments; None if it takes no such inputs.

    Among them is `sequence_output` [batch, seq_length, hidden], and of newer modules
    the list `encoder_outputs` with that of each layer.
    """
    ids, mask, segments = map(tf.constant, inputs)
    if "tokens" in (module.signatures or ()):  # TF1's.
        function = module.signatures["tokens"]
        return function(input_ids=ids, input_mask=mask, segment_ids=segments)
    if not callable(module):
        return None
    by_name = {"input_word_ids": ids, "input_mask": mask, "input_type_ids": segments}
    # Modules of 2020 take and return a list.
    for arguments in (by_name, list(by_name.values())):
        try:
            outputs = module(arguments)
        except (TypeError, ValueError):  # None of its functions takes it.
            continue
        if isinstance(outputs, Mapping):
            return outputs
        if isinstance(outputs, (list, tuple)) and len(outputs) == 2:
            return dict(zip(("pooled_output", "sequence_output"), outputs))
    return None


def _encoder_weights(
    variables: Mapping[str, np.ndarray], layout: str
) -> dict[str, np.ndarray]:
    """The encoder's part of a module's variables, float32, by our names."""
    weights = {}
    for name, value in variables.items():
        if found := layouts.to_ours(layout, name):
            ours, transform = found
            weights[ours] = transform.to_ours(value.astype(np.float32))
    return weights


def _heads(variables: Mapping[str, np.ndarray]) -> int | None:
    """The number of attention heads, where query kernels are [inputs, heads, size]."""
    for name, value in variables.items():
        if name.endswith("query/kernel") and value.ndim == 3:
            return int(value.shape[1])
    return None


def _try_inputs(
    weights: Mapping[str, np.ndarray],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, mask and segments [2, seq_length] int32; the second row is padded."""
    rng = np.random.default_rng(0)
    tables = {
        name: len(weights.get(f"bert/embeddings/{name}_embeddings", ()))
        for name in ("word", "position", "token_type")
    }
    length = min(12, tables["position"])
    ids = rng.integers(tables["word"], size=(2, length), dtype=np.int32)
    mask = np.ones_like(ids)
    mask[1, (length + 1) // 2 :] = 0
    # DistilBERT has no segments.
    types = max(1, tables["token_type"])
    segments = rng.integers(types, size=ids.shape, dtype=np.int32)
    return ids * mask, mask, segments * mask


def _vocab(module: Any, directory: Path) -> Path | None:
    """The asset with the vocabulary; None if there is none, or several."""
    for name in ("vocab_file", "sp_model_file"):
        if asset := getattr(module, name, None):
            return Path(os.fsdecode(asset.asset_path.numpy()))
    # TF1's are known by their place alone.
    assets = [path for path in directory.glob("assets/*") if path.suffix in VOCAB_NAMES]
    return assets[0] if len(assets) == 1 else None


def _lower_case(module: Any) -> bool | None:
    """Whether the module's text was lower-cased; None if it does not say."""
    if (variable := getattr(module, "do_lower_case", None)) is not None:
        return bool(variable.numpy())
    if "tokenization_info" in module.signatures:
        info = module.signatures["tokenization_info"]()
        if "do_lower_case" in info:
            return bool(info["do_lower_case"].numpy())
    return None


def _write(handle: str, contents: _Contents, directory: Path) -> None:
    """Writes the checkpoint, its BERT config and the vocabulary."""
    config = _find_config(handle, contents)
    conversion.write_checkpoint(directory, contents.weights)
    write_json(directory / CONFIG_NAME, dataclasses.asdict(config))
    write_json(directory / _MODULE_FILE, {"lower_case": contents.lower_case})
    if contents.vocab is not None:
        name = VOCAB_NAMES.get(contents.vocab.suffix, "vocab.txt")
        shutil.copyfile(contents.vocab, directory / name)


def _find_config(handle: str, contents: _Contents) -> BertConfig:
    """The BERT config with which our encoder computes the module's hidden states.

    Raises:
      UserError: there is none, or the variables are not those of a whole encoder.
    """
    # What stands on padding means nothing.
    real = _try_inputs(contents.weights)[1] != 0
    expected = contents.states[real]
    nearest = np.inf
    for config in _candidates(handle, contents):
        found = {}
        for activation in ACTIVATIONS:
            tried = dataclasses.replace(config, hidden_act=activation)
            with tf.init_scope():
                states = _states(handle, tried, contents)[real]
            found[float(np.abs(states - expected).max())] = tried
        # The two are so much alike that one tolerance cannot tell them apart.
        difference = min(found)
        if difference <= _TOLERANCE * max(1.0, float(np.abs(expected).max())):
            return found[difference]
        nearest = min(nearest, difference)
    raise UserError(
        f"{handle}: the module computes other hidden states than BERT does with its "
        f"weights (they differ by {nearest:.2g} at least); it may have another "
        "architecture or activation"
    )


def _candidates(handle: str, contents: _Contents) -> Iterator[BertConfig]:
    """BERT configs with variables of such shapes, the likely ones first.

    Their activation is to be found.
    """
    sizes: dict[str, Any] = conversion.sizes(
        {name: value.shape for name, value in contents.weights.items()}
    )
    if "hidden_size" not in sizes:
        raise UserError(f"{handle}: the module has no variables of BERT's layers")
    hidden_size = sizes["hidden_size"]
    if "num_hidden_groups" in sizes:
        sizes["model_type"] = "albert"
    elif "embedding_size" in sizes:
        sizes["model_type"] = "electra"
    # ALBERT's layers share their variables; its models have 12 or 24.
    layers = [sizes.pop("num_hidden_layers", contents.layers)]
    likely = max(1, hidden_size // _HEAD_SIZE)
    divisors = [n for n in range(1, hidden_size + 1) if hidden_size % n == 0]
    heads = sorted(divisors, key=lambda n: (n != likely, n))
    for number, count in itertools.product(
        [contents.heads] if contents.heads else heads,
        layers if layers[0] else [12, 24],
    ):
        yield BertConfig(**sizes, num_attention_heads=number, num_hidden_layers=count)


def _states(handle: str, config: BertConfig, contents: _Contents) -> np.ndarray:
    """Our encoder's hidden states [batch, seq_length, hidden] for `_try_inputs`."""
    encoder = BertEncoder(config)
    for variable in encoder.variables:
        name = variable.name.removesuffix(":0")
        found = contents.weights.get(name)
        if found is None or found.shape != tuple(variable.shape):
            raise UserError(
                f"{handle}: expected a variable for {name} {variable.shape.as_list()}, "
                f"found {'none' if found is None else list(found.shape)}"
            )
        variable.assign(found)
    ids, mask, segments = _try_inputs(contents.weights)
    reads = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    return encoder(ids, mask, segments, reads).numpy()


def _first_line(error: Exception) -> str:
    """What an exception of somebody else's says, in short."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".: ")
