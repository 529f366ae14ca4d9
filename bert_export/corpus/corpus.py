"""A run's corpus: its entities, and its mentions split by split."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterable, Iterator

from bert_export.config import CorpusConfig
from bert_export.corpus import convert, gcide, jsonl, kenet, wordnet_files
from bert_export.corpus.aliases import AliasTable
from bert_export.corpus.candidates import CandidateGenerator, candidate_generator
from bert_export.corpus.convert import READERS
from bert_export.corpus.records import BadRecords, Entity, Mention
from bert_export.corpus.sources import mention_files, named_file
from bert_export.corpus.splits import SPLITS, split_of
from bert_export.corpus.wordnet import build_wordnet


class Corpus:
    """Entities in memory; mentions streamed from their files, however many."""

    def __init__(
        self, config: CorpusConfig, files: dict[str, pathlib.Path], bad: BadRecords
    ):
        """Reads the entities.

        Args:
          config: How to split and how many candidates to keep.
          files: 'entities', and 'train' with or without 'dev' and 'test'. Without
            both, 'train' holds the mentions of all splits; without one, it is empty.
            'training_entities', if any, are candidates in training only.
          bad: Is told of the bad records.

        Raises:
          UserError: The entities cannot be read, or too many are bad.
        """
        self.files = files
        self.entities: dict[str, Entity] = {
            entity.id: entity for entity in jsonl.read_entities(files["entities"], bad)
        }
        self._all_entities = self.entities
        if "training_entities" in files:
            further = jsonl.read_entities(files["training_entities"], bad)
            self._all_entities = self.entities | {each.id: each for each in further}
        self.aliases = AliasTable(self.entities.values(), config.max_candidates)
        self._config = config
        self._bad = bad

    @functools.cached_property
    def generator(self) -> CandidateGenerator:
        """What finds candidates for the mentions without any."""
        kind = self._config.candidate_generation
        return candidate_generator(kind, self.aliases, self.entities.values())

    def candidate_texts(self, fields: Iterable[str]) -> dict[str, str]:
        """Segment B of all that can be a candidate, by id; see `entity_text`."""
        fields = tuple(fields)
        return {
            entity.id: entity_text(entity, fields)
            for entity in self._all_entities.values()
        }

    def mentions(
        self,
        split: str,
        run: jsonl.LineRun | None = None,
        bad: BadRecords | None = None,
    ) -> Iterator[Mention]:
        """Yields the mentions of 'train', 'dev' or 'test', candidates resolved.

        A mention's candidates are its own, or those that the config's candidate
        generation finds, the first max_candidates of them. In 'train' a gold entity
        that is not among them takes the last place; in the other splits it stays
        missed, as it would in use.

        Args:
          split: Its name.
          run: Only those on these lines of the split's file; None for all.
          bad: Is told of the bad records; None for whom the corpus tells.

        Raises:
          UserError: The mentions cannot be read, or too many are bad.
        """
        for mention in self.mentions_as_given(split, run, bad):
            yield self._resolve(mention, keep_gold=split == "train")

    def mentions_as_given(
        self,
        split: str,
        run: jsonl.LineRun | None = None,
        bad: BadRecords | None = None,
    ) -> Iterator[Mention]:
        """Yields the mentions of 'train', 'dev' or 'test' as they are in their file.

        Raises:
          UserError: The mentions cannot be read, or too many are bad.
        """
        path = self.mentions_file(split)
        if path is None:
            return
        fractions = self._config.dev_fraction, self._config.test_fraction
        known = self._all_entities if split == "train" else self.entities
        for mention in jsonl.read_mentions(path, bad or self._bad, known, run):
            if self.has_own_files or split_of(mention.text, *fractions) == split:
                yield mention

    def mentions_file(self, split: str) -> pathlib.Path | None:
        """The file with a split's mentions, which may hold others', too."""
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
        return self.files.get(split if self.has_own_files else "train")

    @property
    def has_own_files(self) -> bool:
        """Whether splits are files, and not drawn from one by their texts."""
        return "dev" in self.files or "test" in self.files

    def _resolve(self, mention: Mention, keep_gold: bool) -> Mention:
        candidates = mention.candidates
        if candidates is None:
            candidates = self.generator.lookup(mention.surface)
        limit = self._config.max_candidates
        candidates = candidates[:limit]
        gold = mention.gold
        if keep_gold and gold is not None and gold not in candidates:
            candidates = (*candidates[: limit - 1], gold)
        return Mention(mention.text, mention.start, mention.end, gold, candidates)


def load_corpus(config: CorpusConfig, workdir: pathlib.Path, bad: BadRecords) -> Corpus:
    """Opens the corpus that a config names; first builds or converts it, if need be.

    Args:
      config: Relative paths in it are relative to the current directory.
      workdir: What is built is kept in its directory 'corpus'.
      bad: Is told of the bad records, now and as mentions are read.

    Raises:
      UserError: A file is not named, missing or bad.
    """
    if config.builder == "wordnet":
        directory = workdir / "corpus"
        build_wordnet(
            config.wordnet_dir,
            None,
            directory,
            config.dev_fraction,
            config.test_fraction,
            config.wordnet_definitions,
            config.wordnet_synonyms,
            gcide.find(config.gcide) if config.wordnet_gcide else None,
        )
        return _built(config, directory, bad)
    if config.builder == "kenet":
        # Not beside the WordNet corpus, whose files have the same names.
        directory = workdir / "corpus" / "kenet"
        kenet.build_kenet(
            config.kenet,
            directory,
            config.dev_fraction,
            config.test_fraction,
            config.kenet_definitions,
        )
        return _built(config, directory, bad)
    if config.builder in READERS:
        # Nor these.
        converted = convert.build(config, workdir / "corpus" / config.builder, bad)
        return Corpus(config, converted.files, bad)
    files = {"entities": named_file("entities", config.entities)}
    for name, path in mention_files(config).items():
        files[name or "train"] = path
    return Corpus(config, files, bad)


def source_paths(
    config: CorpusConfig, workdir: pathlib.Path
) -> dict[str, pathlib.Path]:
    """All files and directories from which `load_corpus` would read or build a corpus.

    Args:
      config: Relative paths in it are relative to the current directory.
      workdir: As for `load_corpus`.

    Returns:
      By the option of config.corpus that names each, or would; lists are numbered.

    Raises:
      UserError: WordNet or KeNet is not there.
    """
    if config.builder == "wordnet":
        found = wordnet_files.find(config.wordnet_dir, None, near=workdir / "corpus")
        files = {f"wordnet_dir/{name}": found / name for name in wordnet_files.NAMES}
        if config.wordnet_gcide:
            files["gcide"] = gcide.find(config.gcide)
        return files
    if config.builder == "kenet":
        return {"kenet": kenet.find(config.kenet)}
    paths = {
        key: getattr(config, key)
        for key in ("entities", "mentions", "dev_mentions", "test_mentions")
    }
    for key in ("zeshel_candidates", "pubtator_pmids"):
        for number, path in enumerate(getattr(config, key)):
            paths[f"{key}/{number}"] = path
    return {key: pathlib.Path(path) for key, path in paths.items() if path}


def _built(config: CorpusConfig, directory: pathlib.Path, bad: BadRecords) -> Corpus:
    """The corpus that a builder has written into a directory."""
    files = {split: directory / f"mentions.{split}.jsonl.gz" for split in SPLITS}
    files["entities"] = directory / "entities.jsonl.gz"
    training_entities = directory / "training_entities.jsonl.gz"
    if training_entities.exists():
        files["training_entities"] = training_entities
    return Corpus(config, files, bad)


def entity_text(
    entity: Entity, fields: Iterable[str] = ("name", "aliases", "description")
) -> str:
    """Returns segment B: 'bank, depository: a financial institution that …'.

    Args:
      entity: The candidate.
      fields: Which of name, aliases and description, in this order. Names are set
        apart by a comma, the description by a colon; empty fields are left out.
    """
    text = ""
    follows_description = False
    for field in fields:
        value = getattr(entity, field)
        part = ", ".join(value) if field == "aliases" else value
        if not part:
            continue
        is_description = field == "description"
        if text:
            text += ": " if is_description or follows_description else ", "
        text += part
        follows_description = is_description
    return text
