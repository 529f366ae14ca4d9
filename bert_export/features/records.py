"""Prepared splits: sharded TFRecords of encoded pairs and the sidecar beside them."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tqdm

from bert_export.corpus.records import BadRecords, Mention
from bert_export.errors import UserError
from bert_export.features.pairs import EncodedPairs, PairEncoder, TextPieces
from bert_export.features.spec import MENTION_ID, FeatureSpec

# Values of `RecordSet.gold` where no candidate is the gold entity.
NIL = -1
MISSED = -2

# Mentions encoded at a time.
_BATCH = 2048
_PARTIAL = ".partial"
# What TFRecord framing adds to a record: its length (8 bytes) and two checksums,
# https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
_FRAME = 16
_COPY_BYTES = 1 << 24


@dataclasses.dataclass(frozen=True)
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
    sidecar = _sidecar(directory, split)
    if sidecar.is_file():
        try:
            existing = RecordSet.load(directory, split)
        except UserError:
            existing = None
        if existing and existing.fingerprint == fingerprint:
            return existing
    directory.mkdir(parents=True, exist_ok=True)
    sidecar.unlink(missing_ok=True)
    _remove_files(directory, split)
    try:
        return _write(
            mentions,
            encoder,
            entity_texts,
            sidecar,
            fingerprint,
            num_shards,
            bad,
            progress,
        )
    except BaseException:
        _remove_files(directory, split)
        raise


def first_examples(records: RecordSet, count: int) -> list[bytes]:
    """The first serialized tf.Examples of a split, at most `count`."""
    dataset = tf.data.TFRecordDataset([str(file) for file in records.files])
    return list(dataset.take(count).as_numpy_iterator())


def _write(
    mentions: Iterable[Mention],
    encoder: PairEncoder,
    entity_texts: Mapping[str, str],
    sidecar: Path,
    fingerprint: str,
    num_shards: int,
    bad: BadRecords,
    progress: bool,
) -> RecordSet:
    split = sidecar.stem
    batch_encoder = _BatchEncoder(encoder, entity_texts)
    mention_sizes: list[int] = []
    gold: list[int] = []
    # Size of all records up to and with each mention, as framed in the file.
    mention_ends: list[int] = []
    written = 0
    no_candidates = {"nil": 0, "missed": 0}
    bad_mentions = 0

    def with_candidates() -> Iterator[tuple[int, Mention]]:
        for number, mention in enumerate(mentions, start=1):
            if mention.candidates:
                yield number, mention
            else:
                no_candidates["nil" if mention.gold is None else "missed"] += 1

    # How many mentions there are shows only at the end, so that all records go to
    # one file first, which is then cut into shards.
    partial = sidecar.with_suffix(_PARTIAL)
    with (
        tqdm.tqdm(
            desc=f"prepare {split}",
            unit=" pairs",
            unit_scale=True,
            disable=None if progress else True,
        ) as bar,
        tf.io.TFRecordWriter(str(partial)) as writer,
    ):
        for batch, encoded in _ahead(batch_encoder, _batches(with_candidates())):
            for (number, mention), reason, pairs in zip(
                batch, encoded.reasons, encoded.pairs(), strict=True
            ):
                if reason:
                    bad_mentions += 1
                    bad.add(f"mentions of {split}", number, reason)
                    continue
                mention_id = len(mention_sizes)
                for candidate, pair in zip(mention.candidates or (), pairs):
                    record = _record(
                        encoder.spec, pair, candidate == mention.gold, mention_id
                    )
                    writer.write(record)
                    written += len(record) + _FRAME
                mention_sizes.append(len(mention.candidates or ()))
                mention_ends.append(written)
                gold.append(_gold_index(mention))
            bar.update(encoded.num_pairs)

    shards = _cut_into_shards(partial, sidecar, num_shards, mention_sizes, mention_ends)
    content = {
        "fingerprint": fingerprint,
        "records": sum(mention_sizes),
        "shards": shards,
        "mention_sizes": mention_sizes,
        "gold": gold,
        "no_candidates": no_candidates,
        "bad_mentions": bad_mentions,
    }
    partial_sidecar = sidecar.with_suffix(".json" + _PARTIAL)
    partial_sidecar.write_text(json.dumps(content) + "\n", "utf-8")
    partial_sidecar.replace(sidecar)
    return RecordSet.load(sidecar.parent, split)


class _Batch:
    """Encoded pairs of a batch of mentions, back in Python."""

    def __init__(self, reasons: list[str], sizes: list[int], pairs: EncodedPairs):
        """Keeps pairs that belong to mentions of the sizes given."""
        # Why a mention is bad; '' for a good one.
        self.reasons = reasons
        self.num_pairs = sum(sizes)
        self._sizes = sizes
        splits = pairs.input_ids.row_splits.numpy().tolist()
        ids = pairs.input_ids.values.numpy().tolist()
        segments = pairs.segment_ids.values.numpy().tolist()
        self._pairs = [
            (ids[begin:end], segments[begin:end], start, last)
            for begin, end, start, last in zip(
                splits[:-1],
                splits[1:],
                pairs.start_ps.numpy().tolist(),
                pairs.end_ps.numpy().tolist(),
                strict=True,
            )
        ]

    def pairs(self) -> Iterator[list[Any]]:
        """Each mention's (input_ids, segment_ids, start_ps, end_ps)."""
        begin = 0
        for size in self._sizes:
            yield self._pairs[begin : begin + size]
            begin += size


class _BatchEncoder:
    """Encodes batches of mentions, the text of each entity once."""

    def __init__(self, encoder: PairEncoder, entity_texts: Mapping[str, str]):
        """Makes one with no entity encoded yet."""
        self._encoder = encoder
        self._entity_texts = entity_texts
        self._candidates: dict[str, np.ndarray] = {}
        strings = tf.TensorSpec([None], tf.string)
        numbers = tf.TensorSpec([None], tf.int64)
        ragged = tf.RaggedTensorSpec([None, None], tf.int64, row_splits_dtype=tf.int64)
        self._encode_text = tf.function(
            encoder.encode_text, input_signature=[strings, numbers, numbers]
        )
        self._encode_candidate = tf.function(
            encoder.encode_candidate, input_signature=[strings]
        )
        self._assemble = tf.function(
            encoder.assemble,
            input_signature=[
                TextPieces(ragged, numbers, numbers, tf.TensorSpec([None], tf.bool)),
                ragged,
                numbers,
                numbers,
            ],
        )

    def __call__(self, mentions: list[Mention]) -> _Batch:
        texts = self._encode_text(
            tf.constant([m.text.encode("utf-8") for m in mentions]),
            tf.constant([m.start for m in mentions], tf.int64),
            tf.constant([m.end for m in mentions], tf.int64),
        )
        index: dict[str, int] = {}
        candidate_index = [
            index.setdefault(candidate, len(index))
            for mention in mentions
            for candidate in mention.candidates or ()
        ]
        sizes = [len(mention.candidates or ()) for mention in mentions]
        pairs = self._assemble(
            texts,
            self._candidate_pieces(list(index)),
            tf.constant(np.repeat(np.arange(len(mentions), dtype=np.int64), sizes)),
            tf.constant(candidate_index, tf.int64),
        )
        reasons = [
            "" if ok else self._reason(mention, last - first + 1)
            for mention, ok, first, last in zip(
                mentions,
                texts.ok.numpy().tolist(),
                texts.first.numpy().tolist(),
                texts.last.numpy().tolist(),
                strict=True,
            )
        ]
        return _Batch(reasons, sizes, pairs)

    def _candidate_pieces(self, ids: list[str]) -> tf.RaggedTensor:
        """[len(ids), pieces] int64."""
        missing = [entity for entity in ids if entity not in self._candidates]
        if missing:
            pieces = self._encode_candidate(
                tf.constant([self._entity_texts[e].encode("utf-8") for e in missing])
            )
            rows = np.split(
                pieces.values.numpy().astype(np.int32),
                pieces.row_splits.numpy()[1:-1],
            )
            # Copies, as a slice would keep the whole batch in memory.
            self._candidates.update(zip(missing, map(np.copy, rows), strict=True))
        rows = [self._candidates[entity] for entity in ids]
        return tf.RaggedTensor.from_row_lengths(
            tf.constant(np.concatenate(rows).astype(np.int64)),
            tf.constant([len(row) for row in rows], tf.int64),
            validate=False,
        )

    def _reason(self, mention: Mention, pieces: int) -> str:
        surface = mention.text[mention.start : mention.end][:40]
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
    while batch := list(itertools.islice(mentions, _BATCH)):
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


def _record(spec: FeatureSpec, pair: Any, is_gold: bool, mention_id: int) -> bytes:
    input_ids, segment_ids, start_ps, end_ps = pair
    values = {
        spec.input_ids: input_ids,
        spec.input_mask: [1] * len(input_ids),
        spec.segment_ids: segment_ids,
        **dict(zip(spec.span_fields, (start_ps, end_ps))),
        spec.label_ids: int(is_gold),
        MENTION_ID: mention_id,
    }
    return spec.encode_example(values)


def _gold_index(mention: Mention) -> int:
    if mention.gold is None:
        return NIL
    candidates = mention.candidates or ()
    return candidates.index(mention.gold) if mention.gold in candidates else MISSED


def _cut_into_shards(
    source: Path,
    sidecar: Path,
    num_shards: int,
    mention_sizes: list[int],
    mention_ends: list[int],
) -> list[dict[str, Any]]:
    """Cuts a TFRecord file between mentions into about equal parts and removes it."""
    ends = np.array([0, *mention_ends], np.int64)
    records = np.concatenate([[0], np.cumsum(mention_sizes, dtype=np.int64)])
    # Mentions up to and with each shard: the first end at or behind its share.
    shares = ends[-1] * np.arange(1, num_shards + 1) / num_shards
    cuts = [0, *np.searchsorted(ends, shares).tolist()]
    shards = []
    with source.open("rb") as whole:
        for shard, (begin, end) in enumerate(itertools.pairwise(cuts)):
            name = f"{sidecar.stem}-{shard:05d}-of-{num_shards:05d}.tfrecord"
            size = int(ends[end] - ends[begin])
            partial = sidecar.with_name(name + _PARTIAL)
            with partial.open("wb") as part:
                left = size
                while left:
                    chunk = whole.read(min(left, _COPY_BYTES))
                    if not chunk:
                        raise OSError(f"{source}: shorter than what was written to it")
                    part.write(chunk)
                    left -= len(chunk)
            partial.replace(sidecar.with_name(name))
            shards.append(
                {
                    "file": name,
                    "records": int(records[end] - records[begin]),
                    "bytes": size,
                }
            )
    source.unlink()
    return shards


def _sidecar(directory: Path, split: str) -> Path:
    return directory / f"{split}.json"


def _remove_files(directory: Path, split: str) -> None:
    """Removes a split's shards and whatever an interrupted run left behind."""
    for pattern in (
        f"{split}-*-of-*.tfrecord",
        f"{split}-*-of-*.tfrecord{_PARTIAL}",
        f"{split}{_PARTIAL}",
        f"{split}.json{_PARTIAL}",
    ):
        for file in directory.glob(pattern):
            file.unlink()
