"""Encodes splits on several workers, into the records that one process writes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bert_export import beam_tasks
from bert_export.config import Config, resolve
from bert_export.corpus import jsonl
from bert_export.corpus.corpus import Corpus
from bert_export.corpus.records import BadRecords
from bert_export.errors import StageError, UserError
from bert_export.features import records
from bert_export.features.pairs import PairEncoder
from bert_export.features.tokenizer import load_tokenizer
from bert_export.files import write_json

# Lines of a file of mentions that make a part.
PART_LINES = 20000


@dataclasses.dataclass(frozen=True)
class PartTask:
    """Some lines of a split's file.

    Attributes:
      split: The split's name.
      number: Of the part, from 0.
      run: The lines.
    """

    split: str
    number: int
    run: jsonl.LineRun


@dataclasses.dataclass(frozen=True)
class PrepareParts:
    """Counts the mentions of parts, then encodes them, on any worker.

    Attributes:
      config: The run's, as JSON.
      vocab: The tokenizer's vocabulary; like all paths the same on each worker.
      corpus_files: The corpus's files by role.
      directory: Where parts are written.
      fingerprints: Of the splits' records.
    """

    config: str
    vocab: str
    corpus_files: tuple[tuple[str, str], ...]
    directory: str
    fingerprints: tuple[str, ...]

    def load(self) -> list[Callable[[PartTask], None]]:
        """Loads the entities and the tokenizer."""
        beam_tasks.use_one_thread()
        config = resolve(json.loads(self.config))
        files = {role: Path(file) for role, file in self.corpus_files}
        corpus = Corpus(config.corpus, files, self.bad_records())
        tokenizer = load_tokenizer(Path(self.vocab), config.features)
        encoder = PairEncoder(tokenizer, config.features)
        texts = corpus.candidate_texts(config.features.candidate_fields)
        return [
            functools.partial(_count_part, self, corpus, encoder),
            functools.partial(_encode_part, self, corpus, encoder, texts),
        ]

    def bad_records(self) -> BadRecords:
        """An empty book, which tolerates what the config does."""
        return BadRecords(json.loads(self.config)["corpus"]["max_bad_records"])

    def file(self, task: PartTask) -> Path:
        """A part's records."""
        name = f"{task.split}.part-{task.number:05d}.tfrecord"
        return Path(self.directory) / name

    def count(self, task: PartTask) -> Path:
        """How many mentions a part has."""
        return self.file(task).with_suffix(".count")

    def result(self, task: PartTask) -> Path:
        """What a part came to; written last."""
        return self.file(task).with_suffix(".json")

    def finished(self) -> int:
        """How many parts are done."""
        return len(list(Path(self.directory).glob("*.part-*.json")))


def write_splits(
    config: Config,
    vocab: Path,
    corpus: Corpus,
    directory: Path,
    fingerprints: Mapping[str, str],
    bad: BadRecords,
    workers: beam_tasks.Workers,
) -> dict[str, records.RecordSet]:
    """Does for splits what `records.write_split` does: the same files, byte for byte.

    The file of a split's mentions is cut into parts of `PART_LINES` lines. First each
    part's mentions are counted, as records carry their mention's number; then they
    are encoded, and the parts are joined in their order.

    Args:
      config: The run's.
      vocab: The tokenizer's vocabulary.
      corpus: Where the mentions are.
      directory: Made if absent.
      fingerprints: Of everything that decides the records, by split.
      bad: Told of bad records, of the files and of the splits.
      workers: Who encodes. All of them see the same files under the same paths.

    Raises:
      UserError: The mentions cannot be read, or too many are bad.
      StageError: A worker failed, or mentions were lost or counted twice.
    """
    directory = directory.absolute()
    work = PrepareParts(
        config=config.to_json(),
        vocab=str(vocab.absolute()),
        corpus_files=tuple(
            (role, str(file.absolute())) for role, file in corpus.files.items()
        ),
        directory=str(directory),
        fingerprints=tuple(fingerprints.values()),
    )
    written: dict[str, records.RecordSet] = {}
    with contextlib.ExitStack() as stack:
        missing: dict[str, list[PartTask]] = {}
        for split, fingerprint in fingerprints.items():
            if existing := records.existing_split(directory, split, fingerprint):
                written[split] = existing
            else:
                stack.enter_context(records.new_split(directory, split))
                missing[split] = _tasks(corpus, split)
        beam_tasks.run(
            work,
            list(itertools.chain(*missing.values())),
            workers,
            "prepare",
            work.finished,
            steps=2,
        )
        for split, tasks in missing.items():
            written[split] = records.join_parts(
                [part(work, task, corpus, bad) for task in tasks],
                directory,
                split,
                fingerprints[split],
                config.features.num_shards,
            )
            for task in tasks:
                work.count(task).unlink()
                work.result(task).unlink()
    return {split: written[split] for split in fingerprints}


def _tasks(corpus: Corpus, split: str) -> list[PartTask]:
    path = corpus.mentions_file(split)
    if path is None:
        return []
    runs = list(jsonl.line_runs(path, PART_LINES))
    if not any(run.records for run in runs):
        raise UserError(
            f"{path}: no mentions in it; expected JSON Lines, one object a line"
        )
    return [PartTask(split, number, run) for number, run in enumerate(runs)]


def _count_part(
    work: PrepareParts, corpus: Corpus, encoder: PairEncoder, task: PartTask
) -> None:
    bad = work.bad_records()
    mentions, numbered = 0, 0
    with _unless_too_many(bad):
        mentions, numbered = records.count_mentions(
            corpus.mentions(task.split, task.run, bad), encoder
        )
    write_json(work.count(task), {"mentions": mentions, "numbered": numbered})


def _encode_part(
    work: PrepareParts,
    corpus: Corpus,
    encoder: PairEncoder,
    texts: Mapping[str, str],
    task: PartTask,
) -> None:
    bad = work.bad_records()
    file = work.file(task)
    # Two workers may be given the same part.
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    before = _counts_before(work, task.split)[task.number]
    result: dict[str, Any] = {}
    try:
        with _unless_too_many(bad):
            encoded = records.write_part(
                corpus.mentions(task.split, task.run, bad),
                texts,
                encoder,
                partial,
                task.split,
                bad,
                first_mention=before["mentions"] + 1,
                first_id=before["numbered"],
                progress=False,
            )
            partial.replace(file)
            result["part"] = dataclasses.asdict(encoded)
            del result["part"]["file"]
    finally:
        partial.unlink(missing_ok=True)
    path = str(corpus.mentions_file(task.split))
    for key, is_line in (("bad_lines", True), ("bad_mentions", False)):
        result[key] = [
            (line, reason)
            for name, line, reason in bad.seen
            if (name == path) == is_line
        ]
    write_json(work.result(task), result)


@contextlib.contextmanager
def _unless_too_many(bad: BadRecords) -> Iterator[None]:
    """Ends early after too many bad records, which `part` will note and refuse."""
    try:
        yield
    except UserError:
        if bad.count <= bad.max_bad_records:
            raise


@functools.lru_cache(maxsize=4)
def _counts_before(work: PrepareParts, split: str) -> list[dict[str, int]]:
    """By part: what all parts before it have together."""
    files = sorted(Path(work.directory).glob(f"{split}.part-*.count"))
    counts = [json.loads(file.read_text("utf-8")) for file in files]
    return [
        dict(zip(("mentions", "numbered"), sums))
        for sums in itertools.accumulate(
            ((count["mentions"], count["numbered"]) for count in counts),
            lambda one, other: (one[0] + other[0], one[1] + other[1]),
            initial=(0, 0),
        )
    ]


def part(
    work: PrepareParts, task: PartTask, corpus: Corpus, bad: BadRecords
) -> records.Part:
    """A part as its worker left it; its bad records are noted.

    Raises:
      UserError: too many records are bad.
      StageError: it has not every mention once.
    """
    path = corpus.mentions_file(task.split)
    try:
        count, found = (
            json.loads(file.read_text("utf-8"))
            for file in (work.count(task), work.result(task))
        )
    except FileNotFoundError as error:
        raise StageError(f"{error.filename} was not written; run again") from error
    for line, reason in found["bad_lines"]:
        bad.add(str(path), line, reason)
    for number, reason in found["bad_mentions"]:
        bad.add(f"mentions of {task.split}", number, reason)
    read = records.Part(file=work.file(task), **found["part"])
    numbered = len(read.mention_sizes)
    left_out = sum(read.no_candidates.values()) + read.bad_mentions
    # A file that is split by its texts has other splits' mentions, too.
    own = task.run.records - len(found["bad_lines"])
    if (
        (read.mentions, numbered) != (count["mentions"], count["numbered"])
        or read.mentions != numbered + left_out
        or (corpus.has_own_files and read.mentions != own)
    ):
        raise StageError(
            f"{path}: {count['mentions']} mentions were counted on lines "
            f"{task.run.first} to {task.run.first + task.run.count - 1}, then "
            f"{numbered} encoded and {left_out} left out; has it changed meanwhile? "
            "Run again"
        )
    return read
