"""A serving_model of a tiny BERT with random weights that reads many scripts."""

from __future__ import annotations

import base64
import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import tensorflow as tf

from bert_export.config import Config, FeaturesConfig, Target, TrainConfig
from bert_export.corpus.records import Mention
from bert_export.export import linker_graph, requests, saved_model, serving_model
from bert_export.export.linker_graph import TrainedLinker
from bert_export.features.pairs import PairEncoder
from bert_export.features.tokenizer import Tokenizer, WordPiece
from bert_export.modeling.bert_config import BertConfig
from bert_export.release import manifest
from bert_export.training import estimator as training
from bert_export.training.model_fn import ModelParams

_ASCII = [chr(code) for code in range(33, 127) if chr(code) not in "qQ"]
_JAMO = [chr(c) for first in (0x1100, 0x1161, 0x11A8) for c in range(first, first + 27)]
_WORDS = [
    *("bank", "river", "the", "money", "he", "sat", "on", "of", "place", "for", "un"),
    *("able", "ing", "北", "京", "银", "行", "มา", "ก", "า", "بنك", "ك", "ب", "ن"),
    *("москва", "ος", "σ", "mask", "unk", "cls", "sep", "ss", "⁄", "😀"),
]
_PIECES = [*_ASCII, *_JAMO, *_WORDS]
VOCAB = list(
    dict.fromkeys(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_PIECES]
        + [f"##{piece}" for piece in _PIECES]
    )
)
BERT = BertConfig(
    vocab_size=len(VOCAB),
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=24,
    # Larger than usual: answers differ visibly.
    initializer_range=0.5,
)
FEATURES = FeaturesConfig(max_seq_length=20)
TOKENIZER = WordPiece(VOCAB)

# (text with the mention in double brackets, candidate)
MARKED = [
    ("he sat on the [[bank]] of the river", "a place for money"),
    ("he sat on the [[bank]] of the river", "the ground beside a river"),
    ("[[北京]]银行", "北京 the capital"),
    ("Москва [[ΟΣ]] ½ ß", "ein Fluß"),
    ("👨\u200d👩\u200d👧 [[한국]] a", "한국"),
    ("\u202eبنك [[بنك]]\u202c", "بنك [MASK] [SEP]"),
    ("Ri\u0301o [[gra\u0301nde]]" + " of the river" * 20, "a river " * 30),
    ("unableing[[able]]", "x"),
    ("the river [[of]] money 😀", ""),
]


def pairs() -> list[tuple[Mention, str]]:
    """MARKED as mentions and candidates."""
    result = []
    for marked, candidate in MARKED:
        before, rest = marked.split("[[")
        surface, after = rest.split("]]", 1)
        start = len(before)
        mention = Mention(
            text=before + surface + after,
            start=start,
            end=start + len(surface),
            gold=None,
            candidates=None,
        )
        result.append((mention, candidate))
    return result


def linker(
    directory: Path,
    features: FeaturesConfig = FEATURES,
    tokenizer: Tokenizer = TOKENIZER,
) -> TrainedLinker:
    """A checkpoint of random weights, as training would start from."""
    prefix = directory / "model.ckpt"
    bert = dataclasses.replace(BERT, vocab_size=tokenizer.size)
    model = TrainedLinker(str(prefix), bert, features, tokenizer)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.compat.v1.set_random_seed(5)
        tf.compat.v1.train.get_or_create_global_step()
        saver = linker_graph.build(model, checked=False)
        session.run(tf.compat.v1.global_variables_initializer())
        saver.save(session, str(prefix))
    return model


def estimator(model: TrainedLinker) -> Any:
    """An Estimator that predicts with the checkpoint's model."""
    config = Config(features=model.features, train=TrainConfig())
    params = ModelParams(model.spec, model.bert, config.train, 1, pretrained=None)
    directory = Path(model.checkpoint).parent / "estimator"
    return training.create_estimator(config, params, directory)


def export(model: TrainedLinker, directory: Path, precision: str = "float32") -> Path:
    """Everything that makes an artifact, but its smoke test."""
    directory.mkdir(parents=True)
    notes = serving_model.write(model, directory, precision, [])
    saved_model.write_vocab(directory, model.tokenizer)
    source = estimator(model)
    texts = requests.record_golden_texts(
        source,
        model.checkpoint,
        pairs(),
        PairEncoder(model.tokenizer, model.features),
        model.spec,
    )
    requests.write_golden_texts(directory, texts)
    examples = [base64.b64decode(r["example"]) for r in texts["requests"]]
    golden = requests.record_golden(source, model.checkpoint, examples, model.spec)
    requests.write_golden(directory, golden)
    requests.write_warmup(directory, "tiny", examples[:3], model.spec, texts)
    manifest.write(
        directory,
        manifest.build(
            directory,
            name="tiny",
            spec=model.spec,
            checkpoint_path=model.checkpoint,
            config={"features": dataclasses.asdict(model.features)},
            metrics={"link_accuracy": 0.5},
            data_fingerprint="0" * 64,
            target=Target("serving_model", precision),
            notes=notes,
        ),
    )
    return directory


@functools.cache
def shared() -> TrainedLinker:
    """The model that the tests of a session share."""
    directory = Path(_temporary().name) / "model"
    directory.mkdir()
    return linker(directory)


@functools.cache
def artifact() -> Path:
    """Its artifact. Copy it before changing anything."""
    return export(shared(), Path(_temporary().name) / "artifact")


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    # Kept until the interpreter ends.
    return tempfile.TemporaryDirectory(prefix="tiny_text_")
