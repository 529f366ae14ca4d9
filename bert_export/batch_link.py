"""Links the mentions of large files into shards; a killed run is gone on with."""

from __future__ import annotations

import base64
import collections
import contextlib
import dataclasses
import functools
import glob
import itertools
import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from bert_export import beam_tasks
from bert_export.config import SAVED_MODELS, resolve
from bert_export.corpus import jsonl
from bert_export.corpus.records import BadRecords, Mention
from bert_export.errors import StageError, UserError
from bert_export.files import list_directory, sha256_file, write_json
from bert_export.inputs import digest
from bert_export.release import manifest_file

if TYPE_CHECKING:
    from bert_export.linking import ArtifactLinker, LinkedMention

# Raised whenever the same input would give other output than before.
_FORMAT = 1
_TFRECORDS = (".tfrecord", ".tfrecords")
_READ_BATCH = 1024
# Mentions a request.
_BATCH = 16


@dataclasses.dataclass(frozen=True)
class Shard:
    """Consecutive records of an input file, and the number of their output.

    Attributes:
      number: From 0.
      file: The input file.
      run: Where they are in it; of a TFRecord in records instead of lines.
    """

    number: int
    file: str
    run: jsonl.LineRun


@dataclasses.dataclass(frozen=True)
class Output:
    """The files of a job.

    Attributes:
      prefix: What their paths begin with.
      suffix: Of those with links: '.jsonl' or '.tfrecord'.
      shards: How many shards there are.
    """

    prefix: str
    suffix: str
    shards: int

    def links(self, number: int) -> Path:
        """A shard's linked mentions."""
        return Path(f"{self.prefix}-{self._part(number)}{self.suffix}")

    def rejected(self, number: int) -> Path:
        """A shard's rejected records; not there if there are none."""
        return Path(f"{self.prefix}.rejected-{self._part(number)}.jsonl")

    def counts(self, number: int) -> Path:
        """What a shard holds; written last."""
        return Path(f"{self.prefix}.counts-{self._part(number)}.json")

    def finished(self) -> int:
        """How many shards have been written."""
        return len(glob.glob(f"{glob.escape(self.prefix)}.counts-*-of-*.json"))

    def _part(self, number: int) -> str:
        return f"{number:05d}-of-{self.shards:05d}"


@dataclasses.dataclass(frozen=True)
class LinkShard:
    """Links shards, on any worker.

    Attributes:
      artifact: The version directory, under this path on each worker, as all others.
      entities: JSON Lines of entities.
      output: The job's files.
      fingerprint: Of everything that decides what is in them.
    """

    artifact: str
    entities: str
    output: Output
    fingerprint: str

    def load(self) -> list[Callable[[Shard], None]]:
        """Loads the artifact and the entities."""
        from bert_export.linking import ArtifactLinker

        beam_tasks.use_one_thread()
        linker = ArtifactLinker(Path(self.artifact), self.entities)
        return [functools.partial(_link_shard, self, linker)]


def batch_link(
    artifact: Path,
    entities: str | None,
    workdir: str | None,
    inputs: Sequence[str],
    output: str,
    shard_mentions: int,
    workers: beam_tasks.Workers,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Links all mentions of files.

    The output depends on the artifact, the entities, the inputs and `shard_mentions`,
    on neither the workers nor the order in which they work. Shards that an earlier
    run finished are verified by their checksums and kept.

    Args:
      artifact: A version directory.
      entities: JSON Lines of entities; None for the corpus that the artifact was
        trained on.
      workdir: Where that corpus was built, if it had to be built.
      inputs: Paths or patterns of files of mentions: TFRecords of tf.Examples if their
        names end in .tfrecord, else JSON Lines, gzip or not.
      output: What the paths of the results begin with; TFRecords are written if it
        ends in .tfrecord, else JSON Lines.
      shard_mentions: Records a shard; of each input file, the last has the rest.
      workers: Who links them.
      overwrite: Whether to remove another job's results with this prefix.

    Returns:
      What PREFIX.counts.json holds.

    Raises:
      UserError: An input, the artifact or the entities cannot be read, or there are
        results of another job.
      StageError: Linking failed, or records were lost or counted twice.
    """
    workers.check()
    described = _verified_manifest(artifact)
    entities = str(Path(entities or _corpus_entities(described, workdir)).absolute())
    if not Path(entities).is_file():
        raise UserError(
            f"batch_link: there is no file {entities}; name the entities to link to "
            "with --entities=FILE"
        )
    files = _input_files(inputs)
    prefix, suffix = _prefix_and_suffix(output)
    shards = [
        Shard(number, file, run)
        for number, (file, run) in enumerate(
            (file, run) for file in files for run in input_runs(file, shard_mentions)
        )
    ]
    results = Output(prefix, suffix, len(shards))
    job = {
        "format": _FORMAT,
        "suffix": suffix,
        "shard_mentions": shard_mentions,
        "artifact": sha256_file(artifact / manifest_file.MANIFEST_FILE),
        "entities": sha256_file(entities),
        "inputs": {file: sha256_file(file) for file in files},
    }
    fingerprint = digest(job)
    _claim(prefix, {"fingerprint": fingerprint, **job}, overwrite)
    kept = {shard.number for shard in shards if _is_kept(results, shard, fingerprint)}
    beam_tasks.run(
        LinkShard(str(artifact.absolute()), entities, results, fingerprint),
        [shard for shard in shards if shard.number not in kept],
        workers,
        "batch_link",
        lambda: results.finished() - len(kept),
    )
    sums = totals(results, shards, fingerprint)
    counts = {
        "fingerprint": fingerprint,
        "artifact": str(artifact),
        "shards": len(shards),
        "shards_kept": len(kept),
        **sums,
    }
    write_json(Path(f"{prefix}.counts.json"), counts)
    return counts


def table(counts: dict[str, Any]) -> str:
    """Counts for people."""
    rows = [
        ("mentions in", counts["in"]),
        ("linked", counts["out"] - counts["nil"]),
        ("NIL", counts["nil"]),
        ("rejected", counts["rejected"]),
        *((f"  {reason}", number) for reason, number in counts["reasons"].items()),
        ("shards", counts["shards"]),
        ("  kept from an earlier run", counts["shards_kept"]),
    ]
    return tabulate(rows)


def parse_example(serialized: bytes) -> dict[str, Any]:
    """The fields of a mention out of a tf.Example.

    Args:
      serialized: `text` (bytes), `start` and `end` (int64), optional `gold` (bytes)
        and `candidates` (bytes), named as in JSON Lines.

    Raises:
      BadRecordError: It is no tf.Example, or one of its features is mistyped.
    """
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    try:
        features = tf.train.Example.FromString(serialized).features.feature
    except DecodeError:
        raise jsonl.BadRecordError("not a tf.Example") from None
    record: dict[str, Any] = {}
    for name, kind in (
        ("text", "bytes_list"),
        ("start", "int64_list"),
        ("end", "int64_list"),
        ("gold", "bytes_list"),
        ("candidates", "bytes_list"),
    ):
        if name not in features:
            continue
        found = features[name].WhichOneof("kind")
        if found not in (kind, None):
            raise jsonl.BadRecordError(
                f"mistyped field {name!r}: expected {kind}, found {found}"
            )
        values = list(getattr(features[name], kind).value)
        if kind == "bytes_list":
            values = [jsonl.decode(value) for value in values]
        if name == "candidates":
            record[name] = values
        elif len(values) == 1:
            record[name] = values[0]
        elif values or name != "gold":
            raise jsonl.BadRecordError(
                f"mistyped field {name!r}: expected one value, found {len(values)}"
            )
    return record


def write_example(result: dict[str, Any]) -> bytes:
    """A serialized tf.Example of a linked mention.

    Args:
      result: As a line of JSON Lines has it. What is None is left out; the lists over
        candidates are `candidates` (ids), `score`, `probability`, `share` and
        `prior_rank`.
    """
    import tensorflow as tf

    example = tf.train.Example()
    feature = example.features.feature
    for name in ("file", "text", "gold", "prediction"):
        if result[name] is not None:
            feature[name].bytes_list.value.append(result[name].encode())
    for name in ("record", "start", "end"):
        feature[name].int64_list.value.append(result[name])
    candidates = result["candidates"]
    feature["candidates"].bytes_list.value.extend(c["id"].encode() for c in candidates)
    for name in ("score", "probability", "share"):
        feature[name].float_list.value.extend(c[name] for c in candidates)
    feature["prior_rank"].int64_list.value.extend(c["prior_rank"] for c in candidates)
    # A map's order is else its hash table's.
    return example.SerializeToString(deterministic=True)


def _verified_manifest(artifact: Path) -> dict[str, Any]:
    """The manifest of an artifact whose files are all as it says."""
    described = manifest_file.read(artifact)
    if described["format"] not in SAVED_MODELS:
        raise UserError(
            f"batch_link: {artifact} is in the format {described['format']}; expected "
            "a saved_model or serving_model"
        )
    found = list_directory(artifact, leave_out=manifest_file.NOT_LISTED)
    for name in sorted(described["files"].keys() | found.keys()):
        if described["files"].get(name) != found.get(name):
            raise UserError(
                f"{artifact / name}: not the file that the manifest lists; export or "
                "copy the artifact again"
            )
    return described


def _corpus_entities(described: dict[str, Any], workdir: str | None) -> Path | str:
    config = resolve(described["config"])
    if config.corpus.builder == "jsonl" and config.corpus.entities:
        return config.corpus.entities
    if workdir is None:
        raise UserError(
            "batch_link: name the entities with --entities=FILE, or the --workdir in "
            "which the corpus was built"
        )
    from bert_export.corpus.corpus import load_corpus

    bad = BadRecords(config.corpus.max_bad_records)
    return load_corpus(config.corpus, Path(workdir), bad).files["entities"]


def _input_files(inputs: Sequence[str]) -> list[str]:
    """The files that paths and patterns name; those of a pattern sorted."""
    files: list[str] = []
    for pattern in inputs:
        found = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern))
        if not found:
            raise UserError(f"--input: there is no file {pattern}")
        files += found
    for file, number in collections.Counter(files).items():
        if number > 1:
            raise UserError(f"--input: {file} is named {number} times")
    return files


def _prefix_and_suffix(output: str) -> tuple[str, str]:
    for suffix in (".jsonl", ".tfrecord"):
        if output.endswith(suffix):
            output = output.removesuffix(suffix)
            break
    else:
        suffix = ".jsonl"
    path = Path(output)
    if output.endswith("/") or not path.name:
        raise UserError(
            f"--output={output}: expected what file names begin with, e.g. out/links"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: cannot write {path}: {error.strerror}") from error
    return str(path.absolute()), suffix


def _claim(prefix: str, job: dict[str, Any], overwrite: bool) -> None:
    """Notes whose results the prefix is for, and removes what a killed run left."""
    path = Path(f"{prefix}.job.json")
    name = glob.escape(Path(prefix).name)
    shard = "[0-9]" * 5 + "*-of-" + "[0-9]" * 5 + "*"
    results = [
        file
        for pattern in (
            f"{name}-{shard}",
            f"{name}.rejected-{shard}",
            f"{name}.counts-{shard}",
            f"{name}.counts.json",
        )
        for file in sorted(path.parent.glob(pattern))
    ]
    is_ours = False
    with contextlib.suppress(OSError, ValueError):
        recorded = json.loads(path.read_text("utf-8"))
        is_ours = recorded["fingerprint"] == job["fingerprint"]
    if not is_ours:
        if results and not overwrite:
            raise UserError(
                f"--output: {results[0]} is of another artifact, other entities, "
                "inputs or --shard_mentions; name another --output, or replace it "
                "with --overwrite"
            )
        for file in results:
            file.unlink()
        try:
            write_json(path, job)
        except OSError as error:
            raise UserError(
                f"--output: cannot write {path}: {error.strerror}"
            ) from error
    for file in path.parent.glob(f".{name}*.partial"):
        file.unlink(missing_ok=True)


def input_runs(file: str, size: int) -> Iterator[jsonl.LineRun]:
    """Cuts an input file into shards."""
    if not file.endswith(_TFRECORDS):
        yield from jsonl.line_runs(file, size)
        return
    import tensorflow as tf

    total = 0
    try:
        for batch in tf.data.TFRecordDataset(file).batch(_READ_BATCH):
            total += len(batch)
    except tf.errors.OpError as error:
        raise UserError(
            f"{file}: not a TFRecord, or damaged behind record {total}: "
            f"{error.message.splitlines()[0]}"
        ) from error
    for first in range(1, total + 1, size):
        count = min(size, total + 1 - first)
        # TensorFlow has no way to start at an offset; it skips records instead.
        yield jsonl.LineRun(first, 0, count, count)


def _records(shard: Shard) -> Iterator[tuple[int, bytes]]:
    """A shard's records with their numbers in the file, from 1; blank lines none."""
    if shard.file.endswith(_TFRECORDS):
        import tensorflow as tf

        every = tf.data.TFRecordDataset(shard.file)
        records = every.skip(shard.run.first - 1).take(shard.run.count)
        yield from enumerate(records.as_numpy_iterator(), shard.run.first)
    else:
        for number, line in jsonl.read_lines(shard.file, shard.run):
            if line.strip():
                yield number, line


def _link_shard(work: LinkShard, linker: ArtifactLinker, shard: Shard) -> None:
    parse = parse_example if shard.file.endswith(_TFRECORDS) else jsonl.parse_object
    counts = {"in": 0, "out": 0, "nil": 0, "rejected": 0}
    reasons: collections.Counter[str] = collections.Counter()
    links, rejected = (
        work.output.links(shard.number),
        work.output.rejected(shard.number),
    )
    with _partial(links) as new_links, _partial(rejected) as new_rejected:
        with (
            _writer(new_links, work.output.suffix) as write,
            open(new_rejected, "w", encoding="utf-8") as rejected_file,
        ):

            def reject(number: int, raw: bytes, reason: str) -> None:
                counts["rejected"] += 1
                reasons[reason.split(":", 1)[0]] += 1
                content = {"file": shard.file, "record": number, "reason": reason}
                rejected_file.write(_json_line(content | _raw(raw)))

            def good() -> Iterator[tuple[int, bytes, Mention]]:
                for number, raw in _records(shard):
                    counts["in"] += 1
                    try:
                        record = {"gold": None} | parse(raw)
                        mention = jsonl.parse_mention(record, linker.entities)
                    except jsonl.BadRecordError as error:
                        reject(number, raw, str(error))
                    else:
                        yield number, raw, mention

            mentions = good()
            while batch := list(itertools.islice(mentions, _BATCH)):
                results = _linked(linker, [mention for _, _, mention in batch])
                for (number, raw, _), result in zip(batch, results, strict=True):
                    if isinstance(result, str):
                        reject(number, raw, f"unreadable mention: {result}")
                        continue
                    counts["out"] += 1
                    counts["nil"] += result.is_nil
                    found = {"file": shard.file, "record": number} | result.to_dict()
                    write(found)
        new_links.replace(links)
        if counts["rejected"]:
            new_rejected.replace(rejected)
        else:
            rejected.unlink(missing_ok=True)
    sums = {links.name: sha256_file(links)}
    if counts["rejected"]:
        sums[rejected.name] = sha256_file(rejected)
    write_json(
        work.output.counts(shard.number),
        {
            "fingerprint": work.fingerprint,
            **counts,
            "reasons": dict(sorted(reasons.items())),
            "sha256": sums,
        },
    )


def _linked(
    linker: ArtifactLinker, mentions: list[Mention]
) -> list[LinkedMention | str]:
    """Each mention linked, or why it cannot be read."""
    from bert_export.linking import UnreadableMention

    try:
        return list(linker.link(mentions))
    except UnreadableMention as error:
        if len(mentions) == 1:
            return [str(error).removeprefix("link: ")]
        half = len(mentions) // 2
        return _linked(linker, mentions[:half]) + _linked(linker, mentions[half:])


def _is_kept(output: Output, shard: Shard, fingerprint: str) -> bool:
    """Whether a shard is finished and as it was written; else removes its mark."""
    counts = output.counts(shard.number)
    try:
        recorded = json.loads(counts.read_text("utf-8"))
        if recorded["fingerprint"] == fingerprint and all(
            sha256_file(counts.with_name(name)) == sha256
            for name, sha256 in recorded["sha256"].items()
        ):
            return True
    except (OSError, ValueError, KeyError):
        pass
    counts.unlink(missing_ok=True)
    return False


def totals(output: Output, shards: list[Shard], fingerprint: str) -> dict[str, Any]:
    """Sums of all shards' counts.

    Raises:
      StageError: they do not add up.
    """
    totals: collections.Counter[str] = collections.Counter()
    reasons: collections.Counter[str] = collections.Counter()
    for shard in shards:
        path = output.counts(shard.number)
        try:
            counts = json.loads(path.read_text("utf-8"))
        except FileNotFoundError as error:
            raise StageError(
                f"batch_link: {path} was not written; run again to go on"
            ) from error
        if (
            counts["fingerprint"] != fingerprint
            or counts["in"] != shard.run.records
            or counts["in"] != counts["out"] + counts["rejected"]
        ):
            raise StageError(
                f"{path}: {counts['out']} linked and {counts['rejected']} rejected of "
                f"{counts['in']} records read, expected {shard.run.records} records of "
                f"{shard.file}; has it changed meanwhile? Run again"
            )
        totals.update({k: counts[k] for k in ("in", "out", "nil", "rejected")})
        reasons.update(counts["reasons"])
    return {
        **{key: totals[key] for key in ("in", "out", "nil", "rejected")},
        "reasons": dict(sorted(reasons.items())),
    }


@contextlib.contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """A sibling to write to, which is removed unless it is renamed.

    Two workers may be given the same shard, so its name is unique.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _writer(path: Path, suffix: str) -> Iterator[Callable[[dict[str, Any]], object]]:
    if suffix == ".tfrecord":
        import tensorflow as tf

        with tf.io.TFRecordWriter(str(path)) as writer:
            yield lambda result: writer.write(write_example(result))
    else:
        with open(path, "w", encoding="utf-8") as file:
            yield lambda result: file.write(_json_line(result))


def _json_line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _raw(record: bytes) -> dict[str, str]:
    """A record as it was read, for JSON."""
    try:
        return {"raw": record.decode("utf-8").rstrip("\n")}
    except UnicodeDecodeError:
        return {"raw_base64": base64.b64encode(record).decode()}
