"""Reads spaCy's DocBin files (.spacy) whose entities have knowledge base ids.

Format: https://spacy.io/api/docbin. Of each document its text is read and, of each of
its entities, the span and `kb_id_`. What spaCy's own entity linker predicts and its
scorer expects where the knowledge base lacks an entity is the id 'NIL'
(`EntityLinker.NIL`); no id at all means that nobody has linked the entity.
"""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Iterator
from typing import Any

from bert_export.config import CorpusConfig
from bert_export.corpus import jsonl
from bert_export.corpus.jsonl import BadRecordError
from bert_export.corpus.records import BadRecords, Mention
from bert_export.corpus.sources import Source, cut, mention_files, own_entities
from bert_export.errors import UserError

NIL = "NIL"


def read_docbin(config: CorpusConfig, bad: BadRecords) -> Source:
    """Opens DocBin files.

    A mention with the id 'NIL' has no gold entity; entities without an id are left out
    and counted. spaCy reads a file whole, so a large corpus is better kept in several;
    documents are then made one at a time.

    Args:
      config: `mentions` is the file, of the train split if `dev_mentions` and
        `test_mentions` are set. `entities` are JSON Lines of ours, whose ids are the
        `kb_id_`. `context_words` are kept on both sides of a mention.
      bad: Is told of the bad records; their line is the document's number, from 1.

    Raises:
      UserError: spaCy is missing, a file cannot be read, its entities were saved
        without ids, or too many records are bad.
    """
    files = mention_files(config)
    entities = own_entities(config.entities, bad)
    notes: collections.Counter[str] = collections.Counter()

    def mentions() -> Iterator[tuple[str | None, Mention]]:
        for split, path in files.items():
            for number, doc in enumerate(_documents(path), 1):
                for span in doc.ents:
                    if not span.kb_id_:
                        notes["entities without kb_id_ left out"] += 1
                        continue
                    fields = {
                        "text": doc.text,
                        "start": span.start_char,
                        "end": span.end_char,
                        "gold": None if span.kb_id_ == NIL else span.kb_id_,
                    }
                    try:
                        mention = jsonl.parse_mention(fields, entities)
                    except BadRecordError as error:
                        where = f"{span.text!r} at {span.start_char} of document"
                        bad.add(path, number, f"{error} ({where} {number})")
                    else:
                        yield split, cut(mention, config.context_words)

    return Source(entities, mentions(), notes)


def _documents(path: pathlib.Path) -> Iterator[Any]:
    """Yields a file's documents."""
    try:
        from spacy.attrs import ENT_IOB, ENT_KB_ID
        from spacy.tokens import DocBin
        from spacy.vocab import Vocab
    except ImportError:
        raise UserError(
            f"{path}: spaCy's DocBin files need spaCy, which cannot be found: "
            "pip install 'bert_export[spacy]'"
        ) from None
    try:
        doc_bin = DocBin().from_disk(path)
        documents = doc_bin.get_docs(Vocab())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except Exception as error:
        raise _unreadable(path, error) from error
    if not {ENT_IOB, ENT_KB_ID} <= set(doc_bin.attrs):
        raise UserError(
            f"{path}: saved without the attributes ENT_IOB and ENT_KB_ID, which DocBin "
            "has by default; save it with them"
        )
    while True:
        try:
            document = next(documents, None)
        except Exception as error:
            raise _unreadable(path, error) from error
        if document is None:
            return
        yield document


def _unreadable(path: pathlib.Path, error: Exception) -> UserError:
    message = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(
        f"{path}: not a DocBin file that spaCy can read ({message}); expected one that "
        "DocBin.to_disk wrote"
    )
