"""The spaCy pipeline component `bert_export_linker`: links doc.ents with an artifact.

Installing bert_export with its extra `spacy` registers the component; there is nothing
to import. Each entity gets a `kb_id_`: the id of the entity it is linked to or, as
spaCy's own entity linker gives it, 'NIL'. `ent._.link_candidates` tells what was chosen
from: (id, probability) of each candidate, best first.
"""

import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from spacy.language import Language
from spacy.pipeline import Pipe
from spacy.tokens import Doc, Span
from spacy.util import minibatch

from bert_export.config import CANDIDATE_GENERATORS
from bert_export.corpus.records import Mention
from bert_export.errors import UserError

if TYPE_CHECKING:
    from bert_export.linking import ArtifactLinker, LinkedMention

NAME = "bert_export_linker"
NIL = "NIL"
EXTENSION = "link_candidates"
# spaCy's tokens that are kept on each side of a mention, for each word piece that the
# model reads. Nearly every token is a word piece or more, but a SentencePiece may be
# several of the single characters that spaCy cuts Chinese into.
_TOKENS_A_PIECE = 4


@Language.factory(
    NAME,
    assigns=["token.ent_kb_id", f"span._.{EXTENSION}"],
    requires=["doc.ents"],
    default_config={
        "artifact": None,
        "entities": None,
        "workdir": None,
        "candidate_generation": None,
        "labels_discard": [],
    },
)
def make_linker(
    nlp: Language,
    name: str,
    artifact: str | None,
    entities: str | None,
    workdir: str | None,
    candidate_generation: str | None,
    labels_discard: list[str],
) -> "BertExportLinker":
    """Makes the component, as nlp.add_pipe("bert_export_linker", config=...) does.

    Paths that are not absolute are relative to the current directory, also when a saved
    pipeline is loaded.

    Args:
      nlp: the pipeline, which is not used.
      name: the component's name in it.
      artifact: the directory of a saved_model or serving_model version.
      entities: JSON Lines of entities to link to; None for those of the corpus that
        the artifact was trained on.
      workdir: where that corpus was built, if it had to be built.
      candidate_generation: 'exact', 'folded' or 'ngram'; None for the choice of the
        artifact's config.
      labels_discard: labels of entities that are not linked: they are 'NIL'.

    Raises:
      UserError: the artifact or the entities are missing or cannot be read.
    """
    if not artifact:
        raise UserError(
            f"{name}: name a version directory of a saved_model or serving_model: "
            f'nlp.add_pipe("{NAME}", config={{"artifact": "work/export/1"}})'
        )
    if not Path(artifact).is_dir():
        raise UserError(f"{name}: artifact: there is no directory {artifact}")
    if entities is not None and not Path(entities).is_file():
        raise UserError(f"{name}: entities: there is no file {entities}")
    if candidate_generation not in (None, *CANDIDATE_GENERATORS):
        raise UserError(
            f"{name}: candidate_generation: expected one of {CANDIDATE_GENERATORS}, "
            f"found {candidate_generation!r}"
        )
    # TensorFlow takes seconds to import.
    from bert_export.linking import ArtifactLinker

    try:
        linker = ArtifactLinker(Path(artifact), entities, workdir, candidate_generation)
    except UserError as error:
        # The options are flags there, of the same names.
        message = str(error).removeprefix("link: ")
        message = message.replace("--entities=FILE", "the option entities")
        message = message.replace("the --workdir", "with the option workdir that")
        raise UserError(f"{name}: {message}") from None
    return BertExportLinker(linker, name, labels_discard)


class BertExportLinker(Pipe):
    """Sets the kb_id_ of each of a document's entities.

    A pipeline that is saved keeps the options in its config.cfg and not the artifact,
    which is loaded again from where it is.
    """

    def __init__(
        self,
        linker: "ArtifactLinker",
        name: str = NAME,
        labels_discard: Iterable[str] = (),
    ):
        """Makes the component.

        Args:
          linker: what links a mention.
          name: the component's name in its pipeline.
          labels_discard: labels of entities that are not linked.
        """
        self.name = name
        self._linker = linker
        self._labels_discard = set(labels_discard)
        self._window = _TOKENS_A_PIECE * linker.max_seq_length
        self._process = os.getpid()
        if not Span.has_extension(EXTENSION):
            Span.set_extension(EXTENSION, default=None)

    def __call__(self, doc: Doc) -> Doc:
        """Links a document's entities."""
        try:
            self._link([doc])
        except Exception as error:
            self.get_error_handler()(self.name, self, [doc], error)
        return doc

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = 128) -> Iterator[Doc]:
        """Links the entities of documents, a batch of them at a time."""
        for docs in minibatch(stream, size=batch_size):
            try:
                self._link(docs)
            except Exception as error:
                self.get_error_handler()(self.name, self, docs, error)
            else:
                yield from docs

    def _link(self, docs: list[Doc]) -> None:
        if os.getpid() != self._process:
            raise UserError(
                f"{self.name}: TensorFlow cannot be used in a copy of the process; "
                "use nlp.pipe with n_process=1"
            )
        entities: list[Span] = []
        mentions: list[Mention] = []
        for doc in docs:
            text = doc.text
            for entity in doc.ents:
                if entity.label_ in self._labels_discard:
                    _annotate(entity, NIL, None)
                else:
                    entities.append(entity)
                    mentions.append(self._mention(entity, text))
        for entity, linked in zip(entities, self._linked(mentions), strict=True):
            if linked is None:
                _annotate(entity, NIL, None)
            else:
                ranked = ((c.entity.id, c.probability) for c in linked.candidates)
                _annotate(entity, linked.prediction or NIL, tuple(ranked))

    def _mention(self, entity: Span, text: str) -> Mention:
        """The entity in as much of its text as the model may read, and some more."""
        doc = entity.doc
        first = doc[max(entity.start - self._window, 0)].idx
        last = doc[min(entity.end + self._window, len(doc)) - 1]
        return Mention(
            text[first : last.idx + len(last)],
            entity.start_char - first,
            entity.end_char - first,
            gold=None,
        )

    def _linked(self, mentions: list[Mention]) -> Iterator["LinkedMention | None"]:
        """Links mentions; None for one that the model cannot read, with a warning."""
        from bert_export.linking import UnreadableMention

        try:
            # All of them before any of them is set.
            yield from list(self._linker.link(mentions))
        except UnreadableMention:
            if len(mentions) > 1:
                for mention in mentions:
                    yield from self._linked([mention])
            else:
                warnings.warn(
                    f"{self.name}: {mentions[0].surface!r} has no word piece, or more "
                    f"than fit max_seq_length {self._linker.max_seq_length}; it is "
                    "NIL",
                    stacklevel=2,
                )
                yield None


def _annotate(
    entity: Span, kb_id: str, candidates: tuple[tuple[str, float], ...] | None
) -> None:
    # A span's kb_id_ is of that span alone; doc.ents are made of the tokens'.
    for token in entity:
        token.ent_kb_id_ = kb_id
    entity._.set(EXTENSION, candidates)
