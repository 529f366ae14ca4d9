"""The spaCy component: the same answers as ArtifactLinker's, on spaCy's documents."""

from __future__ import annotations

import dataclasses
import functools
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import spacy
from spacy.language import Language
from spacy.pipeline import EntityLinker
from spacy.tokens import Doc, DocBin, Span

from bert_export.config import Config, CorpusConfig, FeaturesConfig, ModelConfig
from bert_export.corpus import jsonl
from bert_export.corpus.records import Entity, Mention
from bert_export.errors import UserError
from bert_export.linking import ArtifactLinker
from bert_export.release import manifest
from bert_export.spacy_component import BertExportLinker
from tests import tiny_artifact
from tests.command_line import ROOT

ENTITIES = [
    Entity("Q1", "w1", (), "w2 w3"),
    Entity("Q2", "w1", ("w9",), "w4 w5 w6"),
    Entity("Q3", "w7 w8", (), "w1 w10"),
    Entity("Q4", "w20 " * 12, (), "w1"),
    Entity("Q5", "w4404", (), "w1"),
]
TEXTS = [
    "w3 w1 w10 and W1",
    "",
    "w12 w13",
    "w7 w8 w30 w9. w1!",
    "😀 w7 w8 e\u0301 w9",
]


@functools.cache
def workspace() -> Path:
    """A directory with entities.jsonl and artifact/, whose threshold for NIL is 0."""
    directory = Path(tempfile.mkdtemp(prefix="spacy component "))
    jsonl.write_entities(directory / "entities.jsonl", ENTITIES)
    shutil.copytree(tiny_artifact.artifact(), directory / "artifact")
    describe(directory / "artifact", 0.0)
    return directory


def describe(artifact: Path, threshold: float) -> None:
    """Writes a manifest with a whole config, as an exported artifact has it."""
    entities = str(artifact.parent / "entities.jsonl")
    config = Config(
        name="tiny",
        corpus=CorpusConfig(entities=entities, mentions="none.jsonl"),
        features=FeaturesConfig(max_seq_length=20),
        model=ModelConfig(bert_config="none.json", vocab="none.txt"),
    )
    trained = tiny_artifact.trained()
    manifest.write(
        artifact,
        manifest.build(
            artifact,
            name="tiny",
            spec=trained.spec,
            checkpoint_path=trained.checkpoint,
            config=dataclasses.asdict(config),
            metrics={"link_accuracy": 0.5, "nil": {"threshold": threshold}},
            data_fingerprint="0" * 64,
        ),
    )


def pipeline(**config: Any) -> Language:
    nlp = spacy.blank("en")
    ruler = nlp.add_pipe("entity_ruler")
    for pattern in ("w1", "W1", "w9", "w7 w8", "w12", "w2", "w404", "(", "w20 " * 12):
        label = "NUMBER" if pattern == "w2" else "THING"
        ruler.add_patterns([{"label": label, "pattern": pattern.strip()}])
    config = {"artifact": str(workspace() / "artifact"), **config}
    nlp.add_pipe("bert_export_linker", config=config)
    return nlp


@pytest.fixture(scope="module")
def shared() -> Language:
    """The pipeline without options, for what does not change it."""
    return pipeline()


@pytest.fixture(scope="module")
def check() -> Callable[[Doc], int]:
    """Compares a document's entities with ArtifactLinker's; how many are not NIL."""
    linker = ArtifactLinker(workspace() / "artifact")

    def compare(doc: Doc) -> int:
        mentions = [Mention(doc.text, e.start_char, e.end_char, None) for e in doc.ents]
        links = 0
        for entity, linked in zip(doc.ents, linker.link(mentions), strict=True):
            assert entity.kb_id_ == (linked.prediction or "NIL")
            found = entity._.link_candidates
            assert [name for name, _ in found] == [
                candidate.entity.id for candidate in linked.candidates
            ]
            assert [probability for _, probability in found] == pytest.approx(
                [candidate.probability for candidate in linked.candidates], abs=1e-6
            )
            links += not linked.is_nil
        return links

    return compare


def test_documents_are_linked_as_artifact_linker_does(shared, check) -> None:
    nlp = shared
    assert sum(check(nlp(text)) for text in TEXTS) == 7
    (first, *_) = nlp(TEXTS[0]).ents
    assert first.kb_id_ in ("Q1", "Q2")
    assert len(first._.link_candidates) == 2
    assert nlp("w12").ents[0].kb_id_ == "NIL"


def test_pipe_gives_the_same_in_batches_of_any_size(shared, check) -> None:
    nlp = shared
    alone = [[(e.text, e.kb_id_) for e in nlp(text).ents] for text in TEXTS * 4]
    for batch_size in (1, 3, 1000):
        docs = list(nlp.pipe(TEXTS * 4, batch_size=batch_size))
        assert [[(e.text, e.kb_id_) for e in doc.ents] for doc in docs] == alone
        assert sum(map(check, docs)) == 28


def test_nil_is_what_spacys_own_linker_calls_so() -> None:
    strict = workspace() / "strict"
    shutil.copytree(workspace() / "artifact", strict)
    describe(strict, 1.1)
    doc = pipeline(artifact=str(strict))(TEXTS[0])
    assert [entity.kb_id_ for entity in doc.ents] == [EntityLinker.NIL] * 2
    # What was not likely enough is still told.
    assert len(doc.ents[0]._.link_candidates) == 2


def test_labels_may_be_left_out() -> None:
    doc = pipeline(labels_discard=["NUMBER", "OTHER"])("w2 w1 w2")
    assert [e.kb_id_ for e in doc.ents][::2] == ["NIL", "NIL"]
    assert doc.ents[0]._.link_candidates is None
    assert doc.ents[1].kb_id_ in ("Q1", "Q2")


def test_every_token_of_an_entity_is_annotated(shared) -> None:
    doc = shared("a w7 w8 b")
    assert [token.ent_kb_id_ for token in doc] == ["", "Q3", "Q3", ""]


def test_long_documents_give_what_their_whole_text_gives(shared, check) -> None:
    words = [f"w{n % 40 + 13}" for n in range(3000)]
    for place in (0, 1, 1500, 2990, 2999):
        words[place] = "w1"
    doc = shared("  ".join(words))
    assert len(doc.ents) == 5
    assert check(doc) == 5


def test_what_the_model_cannot_read_is_nil_with_a_warning(shared) -> None:
    nlp = shared
    text = f"w1 {'w20 ' * 12} w7 w8"
    with pytest.warns(
        UserWarning, match="or more than fit max_seq_length 20; it is NIL"
    ):
        doc = nlp(text)
    assert [entity.kb_id_ for entity in doc.ents][1:] == ["NIL", "Q3"]
    assert doc.ents[0].kb_id_ in ("Q1", "Q2")
    assert doc.ents[1]._.link_candidates is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nlp("w12 w1")


def test_misspelt_entities_are_found_where_that_is_chosen(shared) -> None:
    assert shared("w404").ents[0].kb_id_ == "NIL"
    doc = pipeline(candidate_generation="ngram")("w404")
    assert "Q5" in [name for name, _ in doc.ents[0]._.link_candidates]


def test_pipelines_and_documents_are_saved_and_loaded(tmp_path: Path, check) -> None:
    nlp = pipeline(labels_discard=["NUMBER"])
    doc = nlp(TEXTS[3])
    nlp.to_disk(tmp_path / "saved pipeline")
    again = spacy.load(tmp_path / "saved pipeline")
    config = again.get_pipe_config("bert_export_linker")
    assert config["artifact"] == str(workspace() / "artifact")
    assert config["labels_discard"] == ["NUMBER"]
    assert check(again(TEXTS[3])) == 3

    DocBin(docs=[doc], store_user_data=True).to_disk(tmp_path / "linked.spacy")
    (read,) = DocBin().from_disk(tmp_path / "linked.spacy").get_docs(nlp.vocab)
    assert [e.kb_id_ for e in read.ents] == [e.kb_id_ for e in doc.ents]
    assert read.ents[0]._.link_candidates == doc.ents[0]._.link_candidates


def test_spacy_knows_what_the_component_needs_and_gives(shared) -> None:
    analysis = shared.analyze_pipes()
    assert analysis["summary"]["bert_export_linker"]["requires"] == ["doc.ents"]
    assert "bert_export_linker" in analysis["attrs"]["token.ent_kb_id"]["assigns"]
    assert Span.has_extension("link_candidates")


def test_an_error_goes_to_the_pipelines_handler() -> None:
    nlp = pipeline()
    component = nlp.get_pipe("bert_export_linker")
    assert isinstance(component, BertExportLinker)
    # As in a process that multiprocessing forked.
    component._process = -1
    with pytest.raises(UserError, match="with n_process=1"):
        nlp("w1")
    seen: list[str] = []
    nlp.set_error_handler(lambda name, proc, docs, error: seen.append(str(error)))
    assert list(nlp.pipe(["w1", "w9"])) == []
    assert len(seen) == 1


def test_importing_the_component_does_not_load_tensorflow() -> None:
    script = (
        "import sys, bert_export.spacy_component\nsys.exit('tensorflow' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=60)
    assert result.returncode == 0


def test_spacy_finds_the_component_by_itself() -> None:
    script = (
        "import spacy\n"
        "try:\n"
        "    spacy.blank('en').add_pipe('bert_export_linker')\n"
        "except Exception as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert result.stdout.startswith("bert_export_linker: name a version directory of")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"artifact": None}, "name a version directory of a saved_model or"),
        ({"artifact": "no/where"}, "artifact: there is no directory no/where"),
        ({"entities": "none.jsonl"}, "entities: there is no file none.jsonl"),
        ({"candidate_generation": "best"}, "candidate_generation: expected one of"),
    ],
)
def test_wrong_options_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        pipeline(**config)
    assert str(caught.value).startswith(f"bert_export_linker: {message}")
    assert "\n" not in str(caught.value)


def test_an_artifact_of_another_format_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        pipeline(artifact=str(tmp_path))
    assert str(caught.value).startswith("bert_export_linker: ")
    assert "expected the directory of an exported version" in str(caught.value)

    other = tmp_path / "onnx"
    shutil.copytree(workspace() / "artifact", other)
    path = other / manifest.MANIFEST_FILE
    text = path.read_text("utf-8")
    path.write_text(re.sub('"format": "[a-z_]+"', '"format": "onnx"', text), "utf-8")
    with pytest.raises(
        UserError, match="is in the format onnx; expected a saved_model"
    ):
        pipeline(artifact=str(other))


def test_entities_that_are_nowhere_are_asked_for(tmp_path: Path) -> None:
    moved = tmp_path / "artifact"
    shutil.copytree(workspace() / "artifact", moved)
    describe(moved, 0.0)
    with pytest.raises(UserError) as caught:
        pipeline(artifact=str(moved))
    assert str(caught.value) == (
        f"bert_export_linker: there is no file {tmp_path / 'entities.jsonl'}; name the "
        "entities to link to with the option entities"
    )
    given = str(workspace() / "entities.jsonl")
    assert pipeline(artifact=str(moved), entities=given)("w9").ents[0].kb_id_ == "Q2"
