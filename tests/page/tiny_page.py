"""A real tfjs artifact of a tiny BERT with its page, and what Python makes of it."""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from bert_export import demo_server, javascript
from bert_export.config import CorpusConfig
from bert_export.corpus.corpus import Corpus, entity_text
from bert_export.corpus.records import BadRecords, Mention
from bert_export.errors import UserError
from bert_export.export import linker_graph, saved_model, tfjs, tfjs_page
from bert_export.features.pairs import PairEncoder
from tests import tiny_text

ENTITIES = [
    ("bank-money", "bank", ["the money bank"], "a place for money"),
    ("bank-river", "bank", ["river bank"], "the ground beside a river"),
    ("bank-blood", "bank", [], "a place of blood"),
    ("river-water", "river", [], "money of the water"),
    ("river-town", "River", ["the river"], "a place on the Un"),
    ("beijing", "北京", ["Peking"], "北京 the place"),
    ("beijing-opera", "北京", [], "a sound of the place"),
    ("arabic-bank", "بنك", [], "بنك a place for money"),
    ("arabic-benches", "بنك", [], "a place on the river"),
    ("laugh", "😀", [], "ab ab ab"),
    ("grin", "😀", ["grin"], "the bank of ab"),
    ("strasse", "STRAẞE", [], "a place"),
]


def _example(text: str, surface: str) -> Mention:
    start = text.index(surface)
    return Mention(text, start, start + len(surface), None)


EXAMPLES = [
    _example("he sat on the bank of the river, the bank", "bank"),
    _example("the 😀😀 of the money on a place of river", "river"),
    _example("the 😀 sat on a place and on the 北京 money", "北京"),
]


@functools.cache
def corpus() -> Corpus:
    path = Path(_temporary().name) / "entities.jsonl"
    keys = ("id", "name", "aliases", "description")
    lines = [json.dumps(dict(zip(keys, entity))) for entity in ENTITIES]
    path.write_text("\n".join(lines) + "\n")
    return Corpus(CorpusConfig(), {"entities": path}, BadRecords())


@functools.cache
def packages() -> Path:
    try:
        return javascript.packages()
    except UserError as error:
        pytest.skip(str(error))


def write(directory: Path, nil_threshold: float = 0.0) -> Path:
    """All that the page needs of an artifact; its own to change."""
    directory.mkdir(parents=True)
    model = tiny_text.shared()
    tfjs.write(model, directory, "float32", [])
    saved_model.write_vocab(directory, model.tokenizer)
    tfjs_page.write(
        directory,
        corpus(),
        packages(),
        name="tiny",
        features=model.features,
        nil_threshold=nil_threshold,
        examples=EXAMPLES,
    )
    return directory


@functools.cache
def artifact() -> Path:
    """The one that the tests of a session share. Copy it before changing anything."""
    return write(Path(_temporary().name) / "a blank" / "artifact")


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[str]:
    """The address at which an artifact is served meanwhile."""
    with demo_server.create_server(directory, 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def scores(text: str, start: int, end: int) -> dict[str, float]:
    """What the trained graph gives the candidates of a mention, by their ids."""
    model = tiny_text.shared()
    entities = corpus().entities
    ids = corpus().aliases.lookup(text[start:end])
    segments = [entity_text(entities[entity_id]) for entity_id in ids]
    count = len(ids)
    encoded = PairEncoder(model.tokenizer, model.features)(
        tf.constant([text] * count),
        tf.constant([start] * count),
        tf.constant([end] * count),
        tf.constant(segments),
    )
    inputs = encoded.dense_features(model.spec)
    with tf.Graph().as_default() as graph, tf.compat.v1.Session() as session:
        tf.import_graph_def(_frozen(), name="")
        feed: Any = {
            graph.get_tensor_by_name(f"{name}:0"): value.numpy()
            for name, value in inputs.items()
        }
        found: np.ndarray = session.run("score:0", feed)
    return dict(zip(ids, found.tolist()))


@functools.cache
def _frozen() -> Any:
    return linker_graph.freeze(tiny_text.shared(), checked=False)


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    # Kept until the interpreter ends.
    return tempfile.TemporaryDirectory(prefix="tiny page ")
