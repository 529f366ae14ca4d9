"""Writes a linker as our artifacts and as the peers' models, and the requests.

    python make_models.py SHAPE DIRECTORY [RUN]

SHAPE is `trained`, the linker of the finished run RUN; `base`, one of BERT-base's size
with random weights and RUN's features; or `tiny`, of the sample corpus, for tests.
What is there already and would come out the same is kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import random
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import peer_model
from arrays import padded

from bert_export.config import (
    Config,
    CorpusConfig,
    FeaturesConfig,
    ModelConfig,
    Target,
    read_json,
    resolve,
)
from bert_export.config_file import get_config
from bert_export.corpus.corpus import entity_text, load_corpus
from bert_export.corpus.records import BadRecords, Mention
from bert_export.errors import Failure, UserError
from bert_export.export import formats, saved_model
from bert_export.export.linker_graph import TrainedLinker
from bert_export.features.pairs import PairEncoder
from bert_export.features.tokenizer import load_tokenizer
from bert_export.files import write_json
from bert_export.modeling import weights
from bert_export.modeling.bert_config import BertConfig
from bert_export.modeling.linker import Linker
from bert_export.pipeline import choose_checkpoint
from bert_export.training.estimator import create_estimator
from bert_export.training.model_fn import ModelParams
from bert_export.workdir import CONFIG_FILE

ROOT = Path(__file__).resolve().parents[3]
TARGETS = get_config(str(ROOT / "configs" / "benchmark.py")).export.formats
# Of a tiny model, which is not there to be fast.
TINY_TARGETS = ("saved_model", "serving_model", "onnx", "onnx/int8_dynamic")
BASE = BertConfig(
    vocab_size=30522,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    max_position_embeddings=512,
)
# Everything is drawn with it.
SEED = 17
MENTIONS = 1000
TINY_MENTIONS = 6
BATCH = 32
CALIBRATION_MENTIONS = 50
# Texts that a peer calibrates with.
CALIBRATION_TEXTS = 300


def main(shape: str, directory: Path, run: Path | None) -> None:
    """Writes DIRECTORY/ours, peers, requests.json, first.json and model.json."""
    config = _tiny_config() if run is None else _run_config(run)
    workdir = directory / "tiny_run" if run is None else run
    corpus = load_corpus(
        config.corpus, workdir, BadRecords(config.corpus.max_bad_records)
    )
    vocab = weights.vocab_path(config.model, config.features.tokenizer)
    directory.mkdir(parents=True, exist_ok=True)
    model = TrainedLinker(
        str(directory / "random" / "linker.ckpt"),
        BASE,
        config.features,
        load_tokenizer(vocab, config.features),
    )
    if shape == "trained":
        assert run is not None
        model = dataclasses.replace(
            model,
            checkpoint=choose_checkpoint(config, run),
            bert=BertConfig.from_json(weights.bert_config_path(config.model)),
        )
    else:
        if shape == "tiny":
            tiny = BertConfig.from_json(weights.bert_config_path(config.model))
            model = dataclasses.replace(model, bert=tiny)
        if not Path(f"{model.checkpoint}.index").exists():
            _write_random(model)
    encoder = PairEncoder(model.tokenizer, model.features)

    def drawn(split: str, count: int) -> list[dict[str, Any]]:
        """Requests of some mentions with a gold candidate, in an order of chance."""
        mentions = [
            mention
            for mention in corpus.mentions(split)
            if mention.candidates and mention.gold in mention.candidates
        ]
        random.Random(SEED).shuffle(mentions)
        return _requests(
            mentions[:count],
            [
                [
                    entity_text(corpus.entities[name], config.features.candidate_fields)
                    for name in mention.candidates
                ]
                for mention in mentions[:count]
            ],
            encoder,
        )

    mentions = drawn(
        "test",
        TINY_MENTIONS if shape == "tiny" else MENTIONS,
    )
    _write_requests(mentions, directory)
    checkpoint = _digest(
        Path(model.checkpoint).parent.glob(f"{Path(model.checkpoint).name}.[di]*")
    )
    sources = _digest(
        path
        for room in ("export", "features", "modeling", "training")
        for path in (ROOT / "bert_export" / room).rglob("*.py")
    )
    with _made(
        directory / "peers", checkpoint + _digest([Path(peer_model.__file__)])
    ) as peers:
        if peers:
            peer_model.write(model, peers / "pytorch" / "torch")
            peer_model.write_google(model, peers / "google")
            write_json(peers / "texts.json", _texts(drawn("train", CALIBRATION_TEXTS)))
    with _made(
        directory / "ours", checkpoint + sources + _digest([Path(__file__)])
    ) as ours:
        if ours:
            targets = TINY_TARGETS if shape == "tiny" else TARGETS
            calibration = []
            if shape != "tiny":
                calibration = _calibration(drawn("train", CALIBRATION_MENTIONS))
            tokenizer = directory / "peers" / "pytorch" / "torch" / "tokenizer.json"
            for name in tqdm(targets, desc="artifacts", unit="artifact"):
                artifact = ours / name.replace("/", "_")
                artifact.mkdir()
                _export(name, model, artifact, calibration)
                shutil.copy(tokenizer, artifact)
            (ours / "estimator").mkdir()
            write_json(
                ours / "estimator" / "estimator.json",
                {
                    "checkpoint": model.checkpoint,
                    "bert": dataclasses.asdict(model.bert),
                    "features": dataclasses.asdict(model.features),
                },
            )


def _run_config(run: Path) -> Config:
    if not (run / CONFIG_FILE).is_file():
        raise UserError(
            f"--run={run}: there is no {CONFIG_FILE}; name the directory of a run of "
            "configs/benchmark.py"
        )
    return resolve(read_json(run / CONFIG_FILE))


def _tiny_config() -> Config:
    data = ROOT / "data"
    return Config(
        corpus=CorpusConfig(
            entities=str(data / "entities.jsonl"),
            mentions=str(data / "mentions.jsonl"),
            dev_fraction=0.15,
            test_fraction=0.15,
        ),
        features=FeaturesConfig(mention_marker='"', span_fields=(), max_seq_length=64),
        model=ModelConfig(
            bert_config=str(data / "bert_config.json"), vocab=str(data / "vocab.txt")
        ),
    )


def _write_random(model: TrainedLinker) -> None:
    """Writes the checkpoint: the same random weights in every run."""
    tf.keras.utils.set_random_seed(SEED)
    linker = Linker(model.bert, num_span_fields=0)
    for variable in linker.variables:
        # Biases, too: some converters leave out additions of zeros.
        variable.assign_add(tf.random.normal(variable.shape, stddev=0.02))
    by_name = {
        variable.name.removesuffix(":0"): variable for variable in linker.variables
    }
    # An Estimator restores it, too.
    by_name["global_step"] = tf.Variable(0, dtype=tf.int64)
    tf.compat.v1.train.Saver(by_name).save(None, model.checkpoint)


def _requests(
    mentions: list[Mention], candidates: list[list[str]], encoder: PairEncoder
) -> list[dict[str, Any]]:
    """Each mention with the texts of its candidates, as all contenders want to have it.

    `mention` is its text, start and end; the others are lists with one entry a pair:
    `texts`, `starts`, `ends`, `candidates`; `marked`, the text with the mention in
    quotes; `ids` and `segments`, rows of tokens. `gold` is the gold candidate's index.
    """
    requests: list[dict[str, Any]] = []
    for mention, texts in zip(mentions, candidates, strict=True):
        assert mention.candidates
        marked = (
            f'{mention.text[: mention.start]}"{mention.surface}"'
            f"{mention.text[mention.end :]}"
        )
        count = len(texts)
        requests.append(
            {
                "mention": [mention.text, mention.start, mention.end],
                "texts": [mention.text] * count,
                "starts": [mention.start] * count,
                "ends": [mention.end] * count,
                "marked": [marked] * count,
                "candidates": texts,
                "gold": mention.candidates.index(mention.gold),
            }
        )
    columns = {
        key: [value for request in requests for value in request[key]]
        for key in ("texts", "starts", "ends", "candidates")
    }
    pairs = encoder(
        tf.constant(columns["texts"]),
        tf.constant(columns["starts"], tf.int64),
        tf.constant(columns["ends"], tf.int64),
        tf.constant(columns["candidates"]),
    )
    ids, segments = iter(pairs.input_ids.to_list()), iter(pairs.segment_ids.to_list())
    for request in requests:
        count = len(request["texts"])
        request["ids"] = list(itertools.islice(ids, count))
        request["segments"] = list(itertools.islice(segments, count))
    return requests


def _write_requests(mentions: list[dict[str, Any]], directory: Path) -> None:
    """Writes requests.json and, with one mention of typical size, first.json.

    A batch has BATCH pairs that follow each other; the last may have fewer.
    """
    keys = ("texts", "starts", "ends", "marked", "candidates", "ids", "segments")
    pairs = {key: [row for mention in mentions for row in mention[key]] for key in keys}
    batches = [
        {key: rows[first : first + BATCH] for key, rows in pairs.items()}
        for first in range(0, len(pairs["ids"]), BATCH)
    ]
    write_json(directory / "requests.json", {"mentions": mentions, "batches": batches})
    typical = sorted(mentions, key=lambda mention: sum(map(len, mention["ids"])))
    write_json(directory / "first.json", {"mentions": [typical[len(typical) // 2]]})
    lengths = list(map(len, pairs["ids"]))
    write_json(
        directory / "model.json",
        {
            "mentions": len(mentions),
            "pairs": len(lengths),
            "batch": BATCH,
            "pairs_a_mention": len(lengths) / len(mentions),
            "tokens_a_pair": sum(lengths) / len(lengths),
            "longest": max(lengths),
            "gold": [mention["gold"] for mention in mentions],
            "sizes": [len(mention["ids"]) for mention in mentions],
        },
    )


def _calibration(requests: list[dict[str, Any]]) -> list[dict[str, np.ndarray]]:
    """A batch a request, int64 [pairs, longest] by feature name."""
    names = ("input_ids", "input_mask", "segment_ids")
    return [dict(zip(names, padded(request))) for request in requests]


def _texts(requests: list[dict[str, Any]]) -> list[str]:
    """As many texts, each with its first candidate: the peer takes no pairs."""
    return [
        f"{request['marked'][0]} {request['candidates'][0]}" for request in requests
    ]


def _export(
    name: str,
    model: TrainedLinker,
    artifact: Path,
    calibration: list[dict[str, np.ndarray]],
) -> None:
    if name != "saved_model":
        kind, _, precision = name.partition("/")
        formats.write(
            Target(kind, precision or "float32"), model, artifact, calibration
        )
        return
    config = Config(features=model.features)
    params = ModelParams(model.spec, model.bert, config.train, 1, pretrained=None)
    with tempfile.TemporaryDirectory() as model_dir:
        estimator = create_estimator(config, params, Path(model_dir))
        saved_model.export_saved_model(
            estimator, model.spec, artifact, model.checkpoint
        )


@contextlib.contextmanager
def _made(directory: Path, key: str) -> Iterator[Path | None]:
    """The directory to fill, empty; None if it is there, complete and of this key."""
    made_of = directory / "made_of"
    if made_of.is_file() and made_of.read_text("utf-8") == key:
        yield None
        return
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    yield directory
    # Last: what was interrupted is made anew.
    made_of.write_text(key, "utf-8")


def _digest(paths: Iterable[Path]) -> str:
    """The SHA-256 of files, one after another."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    tf.get_logger().setLevel("ERROR")
    try:
        main(
            sys.argv[1],
            Path(sys.argv[2]),
            Path(sys.argv[3]) if len(sys.argv) > 3 else None,
        )
    except Failure as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
