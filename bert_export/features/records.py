"""Prepared splits: sharded TFRecords of encoded pairs and the sidecar beside them."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tqdm

from bert_export.corpus.records import BadRecords, Mention
from bert_export.errors import UserError
from bert_export.features.pairs import PairEncoder, TextPieces
from bert_export.features.spec import MENTION_ID
from bert_export.files import write_text

# Values of `RecordSet.gold` where no candidate is the gold entity.
NIL = -1
MISSED = -2

# Pairs encoded at a time, in whole mentions.
_BATCH_PAIRS = 8192
_PARTIAL = ".partial"
# What TFRecord framing adds to a record: its length (8 bytes) and two checksums,
# https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
_FRAME = 16
_COPY_BYTES = 1 << 24


@dataclasses.dataclass(frozen=True, eq=False)
class RecordSet:
    """A prepared split.

    Attributes:
      split: Its name.
      files: The shards. Read in this order, they hold each mention's records side
        by side, in the order of its candidates.
      mention_sizes: [mentions] int64, records a mention, in the order of the records.
      gold: [mentions] int64, the gold entity's index among the candidates; NIL, or
        MISSED where it is not among them.
      no_candidates: Mentions left out as nothing competes for them: 'nil' of them
        have no gold entity, 'missed' have one.
      bad_mentions: Mentions left out as bad records.
      fingerprint: Of everything that decides the records.
    """

    split: str
    files: tuple[Path, ...]
    mention_sizes: np.ndarray
    gold: np.ndarray
    no_candidates: dict[str, int]
    bad_mentions: int
    fingerprint: str

    @property
    def num_mentions(self) -> int:
        """Mentions that have records."""
        return len(self.mention_sizes)

    @property
    def num_records(self) -> int:
        """Records, which are (mention, candidate) pairs."""
        return int(self.mention_sizes.sum())

    @classmethod
    def load(cls, directory: str | Path, split: str) -> RecordSet:
        """Reads a split's sidecar and looks at its shards.

        Raises:
          UserError: A sidecar or shard that is missing, broken or of a wrong size.
        """
        sidecar = _sidecar(Path(directory), split)
        hint = "delete the directory and prepare the corpus again"
        try:
            content = json.loads(sidecar.read_text("utf-8"))
        except FileNotFoundError as error:
            raise UserError(
                f"{sidecar}: not found; the split {split!r} is not prepared"
            ) from error
        except (OSError, ValueError) as error:
            raise UserError(f"{sidecar}: not readable ({error}); {hint}") from error
        try:
            shards = [
                (sidecar.parent / shard["file"], int(shard["bytes"]))
                for shard in content["shards"]
            ]
            records = cls(
                split=split,
                files=tuple(file for file, _ in shards),
                mention_sizes=np.array(content["mention_sizes"], np.int64),
                gold=np.array(content["gold"], np.int64),
                no_candidates={
                    key: int(content["no_candidates"][key]) for key in ("nil", "missed")
                },
                bad_mentions=int(content["bad_mentions"]),
                fingerprint=str(content["fingerprint"]),
            )
            counts = {
                int(content["records"]),
                sum(int(shard["records"]) for shard in content["shards"]),
                records.num_records,
            }
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{sidecar}: not a sidecar of this version "
                f"({type(error).__name__}: {error}); {hint}"
            ) from error
        if len(counts) > 1 or len(records.gold) != records.num_mentions:
            raise UserError(f"{sidecar}: its counts contradict each other; {hint}")
        for file, size in shards:
            found = file.stat().st_size if file.is_file() else None
            if found != size:
                state = "not found" if found is None else f"found {found} bytes"
                raise UserError(f"{file}: {state}, expected {size} bytes; {hint}")
        return records


@dataclasses.dataclass(frozen=True)
class Part:
    """Consecutive mentions of a split, encoded.

    Attributes:
      file: Their records, a TFRecord.
      mentions: How many were read.
      mention_sizes: Records a mention, of those that have any.
      mention_bytes: The size of each one's records, as framed in the file.
      gold: As in `RecordSet`; so are the others.
      no_candidates: By kind.
      bad_mentions: How many were left out.
    """

    file: Path
    mentions: int
    mention_sizes: list[int]
    mention_bytes: list[int]
    gold: list[int]
    no_candidates: dict[str, int]
    bad_mentions: int


def write_split(
    mentions: Iterable[Mention],
    entity_texts: Mapping[str, str],
    encoder: PairEncoder,
    directory: str | Path,
    split: str,
    fingerprint: str,
    num_shards: int,
    bad: BadRecords,
    progress: bool = True,
) -> RecordSet:
    """Encodes a split's pairs and writes them as sharded TFRecords with a sidecar.

    Shards are `SPLIT-00000-of-00004.tfrecord`: tf.Examples of the spec, not padded,
    with `MENTION_ID`, the mention's number in the order of the records, from 0. A
    mention's records are side by side in one shard. The sidecar `SPLIT.json` is
    written last, so an interrupted run leaves none. A split that is there with the
    same fingerprint is not written again.

    Args:
      mentions: The split's mentions, candidates resolved.
      entity_texts: Segment B of each entity by its id.
      encoder: Makes the pairs; its spec names the features.
      directory: Made if absent.
      split: The split's name.
      fingerprint: Of everything that decides the records.
      num_shards: Files to write.
      bad: Told of mentions that cannot be encoded (their number in the split takes
        the line's place); they are left out.
      progress: Whether to show a progress bar, if standard error is a terminal.

    Raises:
      UserError: Too many bad mentions, or anything that `mentions` raises.
    """
    directory = Path(directory)
    if existing := existing_split(directory, split, fingerprint):
        return existing
    with new_split(directory, split):
        # How many mentions there are shows only at the end, so that all records go to
        # one file first, which is then cut into shards.
        part = write_part(
            mentions,
            entity_texts,
            encoder,
            directory / f"{split}{_PARTIAL}",
            split,
            bad,
            progress=progress,
        )
        return join_parts([part], directory, split, fingerprint, num_shards)


def existing_split(directory: Path, split: str, fingerprint: str) -> RecordSet | None:
    """A split that is there, whole, with this fingerprint."""
    if not _sidecar(directory, split).is_file():
        return None
    try:
        existing = RecordSet.load(directory, split)
    except UserError:
        return None
    return existing if existing.fingerprint == fingerprint else None


@contextlib.contextmanager
def new_split(directory: Path, split: str) -> Iterator[None]:
    """Makes room for a split, and removes what is there of it after an exception."""
    directory.mkdir(parents=True, exist_ok=True)
    _sidecar(directory, split).unlink(missing_ok=True)
    _remove_files(directory, split)
    try:
        yield
    except BaseException:
        _remove_files(directory, split)
        raise


def spread_examples(records: RecordSet, count: int) -> list[bytes]:
    """At most `count` serialized tf.Examples, evenly spaced over a split."""
    dataset = tf.data.TFRecordDataset([str(file) for file in records.files])
    every = max(1, records.num_records // count)
    return list(dataset.shard(every, 0).take(count).as_numpy_iterator())


def count_mentions(
    mentions: Iterable[Mention], encoder: PairEncoder
) -> tuple[int, int]:
    """How many mentions there are, and how many of them `write_part` would number."""
    batch_encoder = _BatchEncoder(encoder, {}, 0)
    total = 0

    def with_candidates() -> Iterator[tuple[int, Mention]]:
        nonlocal total
        for total, mention in enumerate(mentions, start=1):
            if mention.candidates:
                yield total, mention

    numbered = sum(
        reasons.count("")
        for reasons in map(
            batch_encoder.reasons,
            ([m for _, m in batch] for batch in _batches(with_candidates())),
        )
    )
    return total, numbered


def write_part(
    mentions: Iterable[Mention],
    entity_texts: Mapping[str, str],
    encoder: PairEncoder,
    file: Path,
    split: str,
    bad: BadRecords,
    first_mention: int = 1,
    first_id: int = 0,
    progress: bool = True,
) -> Part:
    """Encodes consecutive mentions of a split into one TFRecord.

    Args:
      mentions: Candidates resolved.
      entity_texts: Segment B of each entity by its id.
      encoder: Makes the pairs.
      file: Is written.
      split: The split's name.
      bad: Is told of mentions that cannot be encoded.
      first_mention: The first mention's number in the split, from 1.
      first_id: `MENTION_ID` of the first mention that has one.
      progress: As for `write_split`.

    Raises:
      UserError: Too many bad mentions, or anything that `mentions` raises.
    """
    batch_encoder = _BatchEncoder(encoder, entity_texts, first_id)
    mention_sizes: list[int] = []
    mention_bytes: list[int] = []
    gold: list[int] = []
    no_candidates = {"nil": 0, "missed": 0}
    bad_mentions = 0
    number = first_mention - 1

    def with_candidates() -> Iterator[tuple[int, Mention]]:
        nonlocal number
        for number, mention in enumerate(mentions, start=first_mention):
            if mention.candidates:
                yield number, mention
            else:
                no_candidates["nil" if mention.gold is None else "missed"] += 1

    with (
        tqdm.tqdm(
            desc=f"prepare {split}",
            unit=" pairs",
            unit_scale=True,
            disable=None if progress else True,
        ) as bar,
        tf.io.TFRecordWriter(str(file)) as writer,
    ):
        for batch, encoded in _ahead(batch_encoder, _batches(with_candidates())):
            examples = iter(encoded.examples)
            for (place, mention), reason in zip(batch, encoded.reasons, strict=True):
                if reason:
                    bad_mentions += 1
                    bad.add(f"mentions of {split}", place, reason)
                    continue
                size = len(mention.candidates or ())
                written = 0
                for example in itertools.islice(examples, size):
                    writer.write(example)
                    written += len(example) + _FRAME
                mention_sizes.append(size)
                mention_bytes.append(written)
                gold.append(_gold_index(mention))
            bar.update(len(encoded.examples))
    return Part(
        file,
        number + 1 - first_mention,
        mention_sizes,
        mention_bytes,
        gold,
        no_candidates,
        bad_mentions,
    )


def join_parts(
    parts: Sequence[Part],
    directory: Path,
    split: str,
    fingerprint: str,
    num_shards: int,
) -> RecordSet:
    """Makes shards and the sidecar of a split's parts, and removes their files."""
    sidecar = _sidecar(directory, split)
    mention_sizes = [size for part in parts for size in part.mention_sizes]
    mention_bytes = [size for part in parts for size in part.mention_bytes]
    files = [part.file for part in parts]
    content = {
        "fingerprint": fingerprint,
        "records": sum(mention_sizes),
        "shards": _cut_into_shards(
            files, sidecar, num_shards, mention_sizes, mention_bytes
        ),
        "mention_sizes": mention_sizes,
        "gold": [gold for part in parts for gold in part.gold],
        "no_candidates": {
            kind: sum(part.no_candidates[kind] for part in parts)
            for kind in ("nil", "missed")
        },
        "bad_mentions": sum(part.bad_mentions for part in parts),
    }
    write_text(sidecar, json.dumps(content) + "\n")
    return RecordSet.load(directory, split)


@dataclasses.dataclass(frozen=True)
class _Batch:
    """A batch of mentions, encoded.

    Attributes:
      reasons: Why each mention is bad; '' for a good one.
      examples: Serialized tf.Examples of the good mentions' pairs, in their order.
    """

    reasons: list[str]
    examples: list[bytes]


class _BatchEncoder:
    """Encodes a split's mentions batch after batch."""

    def __init__(
        self, encoder: PairEncoder, entity_texts: Mapping[str, str], first_id: int
    ):
        """Makes one that numbers the mentions from `first_id`."""
        self._encoder = encoder
        self._entity_texts = entity_texts
        self._next_id = first_id
        strings = tf.TensorSpec([None], tf.string)
        numbers = tf.TensorSpec([None], tf.int64)
        flags = tf.TensorSpec([None], tf.bool)
        ragged = tf.RaggedTensorSpec([None, None], tf.int64, row_splits_dtype=tf.int64)
        self._encode_text = tf.function(
            encoder.encode_text, input_signature=[strings, numbers, numbers]
        )
        self._encode_pairs = tf.function(
            self._pairs_graph,
            input_signature=[
                TextPieces(ragged, numbers, numbers, flags),
                strings,
                *[numbers] * 4,
            ],
        )

    def reasons(self, mentions: list[Mention]) -> list[str]:
        """Why each mention is bad; '' for a good one."""
        return self._texts(mentions)[1]

    def _texts(self, mentions: list[Mention]) -> tuple[TextPieces, list[str]]:
        texts = self._encode_text(
            tf.constant([mention.text for mention in mentions]),
            tf.constant([mention.start for mention in mentions], tf.int64),
            tf.constant([mention.end for mention in mentions], tf.int64),
        )
        return texts, [
            "" if ok else self._reason(mention, pieces)
            for mention, ok, pieces in zip(
                mentions,
                texts.ok.numpy().tolist(),
                (texts.last - texts.first + 1).numpy().tolist(),
                strict=True,
            )
        ]

    def __call__(self, mentions: list[Mention]) -> _Batch:
        texts, reasons = self._texts(mentions)
        good = [row for row, reason in enumerate(reasons) if not reason]
        if not good:
            return _Batch(reasons, [])
        # Each entity of the batch is tokenized once.
        entities: dict[str, int] = {}
        sizes, candidate_index, labels = [], [], []
        for row in good:
            candidates = mentions[row].candidates or ()
            gold = mentions[row].gold
            sizes.append(len(candidates))
            for candidate in candidates:
                candidate_index.append(entities.setdefault(candidate, len(entities)))
                labels.append(int(candidate == gold))
        mention_ids = np.arange(len(good)) + self._next_id
        self._next_id += len(good)
        examples = self._encode_pairs(
            texts,
            tf.constant([self._entity_texts[entity] for entity in entities]),
            tf.constant(np.repeat(good, sizes), tf.int64),
            tf.constant(candidate_index, tf.int64),
            tf.constant(labels, tf.int64),
            tf.constant(np.repeat(mention_ids, sizes), tf.int64),
        )
        return _Batch(reasons, examples.numpy().tolist())

    def _pairs_graph(
        self,
        texts: TextPieces,
        candidates: tf.Tensor,
        text_index: tf.Tensor,
        candidate_index: tf.Tensor,
        labels: tf.Tensor,
        mention_ids: tf.Tensor,
    ) -> tf.Tensor:
        """[pairs] string: serialized tf.Examples."""
        pairs = self._encoder.assemble(
            texts,
            self._encoder.encode_candidate(candidates),
            text_index,
            candidate_index,
        )
        spec = self._encoder.spec
        extra = {spec.label_ids: labels, MENTION_ID: mention_ids}
        return spec.serialize(pairs.features(spec) | extra)

    def _reason(self, mention: Mention, pieces: int) -> str:
        surface = mention.surface[:40]
        if pieces < 1:
            return f"mention without a word piece: {surface!r}"
        return (
            f"mention longer than the window: {surface!r} has {pieces} word pieces, "
            f"a text's part of {self._encoder.max_seq_length} tokens (markers "
            f"included) is {self._encoder.text_room}"
        )


def _batches(
    mentions: Iterator[tuple[int, Mention]],
) -> Iterator[list[tuple[int, Mention]]]:
    """Cuts off a batch as soon as it has `_BATCH_PAIRS` pairs or more."""
    batch: list[tuple[int, Mention]] = []
    pairs = 0
    for number, mention in mentions:
        batch.append((number, mention))
        pairs += len(mention.candidates or ())
        if pairs >= _BATCH_PAIRS:
            yield batch
            batch, pairs = [], 0
    if batch:
        yield batch


def _ahead(
    encoder: _BatchEncoder, batches: Iterator[list[tuple[int, Mention]]]
) -> Iterator[tuple[list[tuple[int, Mention]], _Batch]]:
    """Encodes each batch in a second thread while the one before is being written."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as pool:
        waiting = None
        for batch in batches:
            future = pool.submit(encoder, [mention for _, mention in batch])
            if waiting:
                yield waiting[0], waiting[1].result()
            waiting = batch, future
        if waiting:
            yield waiting[0], waiting[1].result()


def _gold_index(mention: Mention) -> int:
    if mention.gold is None:
        return NIL
    candidates = mention.candidates or ()
    return candidates.index(mention.gold) if mention.gold in candidates else MISSED


def _cut_into_shards(
    files: list[Path],
    sidecar: Path,
    num_shards: int,
    mention_sizes: list[int],
    mention_bytes: list[int],
) -> list[dict[str, Any]]:
    """Cuts a row of TFRecord files between mentions into about equal shards.

    The files are removed.
    """
    ends = np.concatenate([[0], np.cumsum(mention_bytes, dtype=np.int64)])
    records = np.concatenate([[0], np.cumsum(mention_sizes, dtype=np.int64)])
    # Mentions up to and with each shard: the first end at or behind its share.
    shares = ends[-1] * np.arange(1, num_shards + 1) / num_shards
    cuts = [0, *np.searchsorted(ends, shares).tolist()]
    shards = []
    with contextlib.closing(_chunks(files)) as chunks:
        chunk = memoryview(b"")
        for shard, (begin, end) in enumerate(itertools.pairwise(cuts)):
            name = f"{sidecar.stem}-{shard:05d}-of-{num_shards:05d}.tfrecord"
            size = int(ends[end] - ends[begin])
            partial = sidecar.with_name(name + _PARTIAL)
            with partial.open("wb") as part:
                left = size
                while left:
                    chunk = chunk or next(chunks, chunk)
                    if not chunk:
                        raise OSError(f"{files[-1]}: shorter than what was written")
                    written = part.write(chunk[:left])
                    chunk = chunk[written:]
                    left -= written
            partial.replace(sidecar.with_name(name))
            shards.append(
                {
                    "file": name,
                    "records": int(records[end] - records[begin]),
                    "bytes": size,
                }
            )
    for file in files:
        file.unlink()
    return shards


def _chunks(files: list[Path]) -> Generator[memoryview, None, None]:
    """The bytes of a row of files."""
    for file in files:
        with file.open("rb") as source:
            while chunk := source.read(_COPY_BYTES):
                yield memoryview(chunk)


def _sidecar(directory: Path, split: str) -> Path:
    return directory / f"{split}.json"


def _remove_files(directory: Path, split: str) -> None:
    """Removes a split's shards and whatever an interrupted run left behind."""
    for pattern in (
        f"{split}-*-of-*.tfrecord",
        f"{split}-*-of-*.tfrecord{_PARTIAL}",
        f"{split}{_PARTIAL}",
        f"{split}.part-*",
        f".{split}.part-*",
        f".{split}.json.*{_PARTIAL}",
    ):
        for file in directory.glob(pattern):
            file.unlink()
