"""Writes the linking page into a tfjs artifact, with the corpus' alias table."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bert_export.config import FeaturesConfig
from bert_export.corpus.aliases import normalize
from bert_export.corpus.corpus import Corpus
from bert_export.corpus.records import Mention
from bert_export.errors import StageError
from bert_export.export import saved_model
from bert_export.export.tfjs_characters import characters
from bert_export.files import list_directory

DIRECTORY = "page"
FORMAT_VERSION = 1
# Stands in index.html for the version.
_PLACEHOLDER = "{version}"
_STATIC = Path(__file__).with_name("tfjs_page")
# These lie beside the directory of the version, under addresses that never change.
_OUTSIDE = ("index.html", "service_worker.js")
_PACKAGES = "node_modules/@tensorflow"
_WASM = (
    "tfjs-backend-wasm.wasm",
    "tfjs-backend-wasm-simd.wasm",
    "tfjs-backend-wasm-threaded-simd.wasm",
)
# Fetched only when somebody chooses the backend.
_WHEN_CHOSEN = ("tf-backend-webgl.min.js", "tf-backend-cpu.min.js")
_BUNDLES = {
    "tf-core.min.js": "tfjs-core/dist",
    "tf-converter.min.js": "tfjs-converter/dist",
    "tf-backend-wasm.min.js": "tfjs-backend-wasm/dist",
    "tf-backend-webgl.min.js": "tfjs-backend-webgl/dist",
    "tf-backend-cpu.min.js": "tfjs-backend-cpu/dist",
    **dict.fromkeys(_WASM, "tfjs-backend-wasm/dist"),
}
# Characters of JSON, of which gzip leaves about a quarter.
_SHARD_SIZE = 100_000
_EXAMPLES = 6
# Characters of a text that says enough, and can be taken in at a glance.
_EXAMPLE_LENGTHS = range(30, 120)


def write(
    staging: Path,
    corpus: Corpus,
    packages: Path,
    *,
    name: str,
    features: FeaturesConfig,
    nil_threshold: float,
    examples: Iterable[Mention],
) -> list[str]:
    """Writes `page/`: any static file server can then serve the artifact.

    `page/index.html` reads all else from `page/<version>/`, the model and the
    vocabulary from the artifact. The version is a hash of them all, so that no cache
    ever mixes two. `page/<version>/page.json` says what belongs together.

    The page's tokenizer is WordPiece: an artifact with a SentencePiece model gets no
    page.

    Args:
      staging: the artifact, with its model.json, weights and vocabulary.
      corpus: gives the alias table and the entities.
      packages: a directory whose node_modules has TensorFlow.js.
      name: the model's name.
      features: what the model was trained with.
      nil_threshold: the link probability below which a best candidate is NIL.
      examples: held-out mentions to show; the first that are short, and whose surface
        form the alias table has two candidates or more for, are taken.

    Returns:
      Sentences on what was left out.

    Raises:
      StageError: the artifact has no model, or a package lacks a file.
    """
    if features.tokenizer != "wordpiece":
        return [
            f"there is no linking page: in a browser it would need {features.tokenizer}"
            ", and it has WordPiece alone; programs can tokenize with the artifact's "
            f"{saved_model.vocab_path(features.tokenizer)}"
        ]
    model = _model_files(staging)
    page = staging / DIRECTORY
    content = page / "version"
    content.mkdir(parents=True)
    for path in _STATIC.iterdir():
        if path.name not in _OUTSIDE:
            shutil.copyfile(path, content / path.name)
    _copy_bundles(packages, content / "tfjs")
    _write_json(content / "characters.json", characters(features.lower_case))
    firsts, largest = _write_aliases(corpus, content / "aliases")
    chosen = list(_choose(corpus, examples))
    described = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "nil_threshold": nil_threshold,
        "examples": [
            {"text": mention.text, "start": mention.start, "end": mention.end}
            for mention in chosen
        ],
        "aliases": firsts,
        "files": model,
    }
    version = _version(content, described)
    described["version"] = version
    described["start_files"] = [
        path
        for path in (*list_directory(content), "page.json")
        if not path.startswith("aliases/") and Path(path).name not in _WHEN_CHOSEN
    ]
    _write_json(content / "page.json", described)
    content.rename(page / version)
    shutil.copyfile(_STATIC / "service_worker.js", page / "service_worker.js")
    index = (_STATIC / "index.html").read_text(encoding="utf-8")
    (page / "index.html").write_text(
        index.replace(_PLACEHOLDER, version), encoding="utf-8"
    )
    # For web pages and Node programs that import it.
    (page / "linker.mjs").write_text(
        f'export * from "./{version}/linker.mjs";\n', encoding="utf-8"
    )
    notes = [
        f"the page's alias table has {len(firsts)} files of at most "
        f"{largest // 1000 + 1} kB"
    ]
    if not chosen:
        notes.append(
            "the page has no examples: no held-out mention is in the alias table with "
            "two candidates or more"
        )
    return notes


def _model_files(staging: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of what the page reads of the artifact."""
    vocab = saved_model.vocab_path("wordpiece")
    files = list_directory(staging)
    for path in ("model.json", vocab):
        if path not in files:
            raise StageError(f"tfjs: {staging} has no {path} to make a page for")
    model = json.loads((staging / "model.json").read_text(encoding="utf-8"))
    shards = [path for group in model["weightsManifest"] for path in group["paths"]]
    missing = [path for path in shards if path not in files]
    if missing:
        raise StageError(f"tfjs: model.json names {missing[0]}, which does not exist")
    return {path: files[path] for path in ("model.json", vocab, *shards)}


def _copy_bundles(packages: Path, directory: Path) -> None:
    directory.mkdir()
    for name, place in _BUNDLES.items():
        source = packages / _PACKAGES / place / name
        try:
            shutil.copyfile(source, directory / name)
        except OSError as error:
            raise StageError(f"tfjs: {source}: {error.strerror}") from error


def _write_aliases(corpus: Corpus, directory: Path) -> tuple[list[str], int]:
    """Writes the alias table in sorted shards, so that near aliases share a file.

    Each is gzip-compressed JSON: `{"aliases": {alias: [id, …]}, "entities": {id:
    [name, [alias, …], description]}}`.

    Returns:
      The first alias of each, and the size in bytes of the largest.
    """
    directory.mkdir()
    aliases = {
        normalize(surface)
        for entity in corpus.entities.values()
        for surface in (entity.name, *entity.aliases)
    }
    # JavaScript's order of strings.
    ordered = sorted(
        aliases - {""}, key=lambda alias: alias.encode("utf-16-be", "surrogatepass")
    )
    firsts: list[str] = []
    largest = 0
    for number, shard in enumerate(_shards(corpus, ordered)):
        firsts.append(next(iter(shard["aliases"])))
        # No time in it: the same corpus gives the same bytes.
        compressed = gzip.compress(_json(shard), mtime=0)
        largest = max(largest, len(compressed))
        (directory / f"{number}.json.gz").write_bytes(compressed)
    return firsts, largest


def _shards(corpus: Corpus, aliases: list[str]) -> Iterator[dict[str, Any]]:
    shard: dict[str, Any] = {"aliases": {}, "entities": {}}
    size = 0
    for alias in tqdm(aliases, desc="page: aliases", unit="", leave=False):
        ids = corpus.aliases.lookup(alias)
        new = {
            entity.id: [entity.name, list(entity.aliases), entity.description]
            for entity in map(corpus.entities.__getitem__, ids)
        }
        added = len(_json({alias: ids})) + len(_json(new))
        if size and size + added > _SHARD_SIZE:
            yield shard
            shard, size = {"aliases": {}, "entities": {}}, 0
        shard["aliases"][alias] = ids
        shard["entities"].update(new)
        size += added
    if size:
        yield shard


def _choose(corpus: Corpus, examples: Iterable[Mention]) -> Iterator[Mention]:
    """A few mentions worth showing, no surface form twice."""
    seen: set[str] = set()
    for mention in examples:
        surface = normalize(mention.surface)
        if (
            surface not in seen
            and len(mention.text) in _EXAMPLE_LENGTHS
            and len(corpus.aliases.lookup(surface)) > 1
        ):
            seen.add(surface)
            yield mention
        if len(seen) == _EXAMPLES:
            return


def _version(content: Path, described: dict[str, Any]) -> str:
    """Names everything that the page is made of."""
    everything = {
        "page": described,
        "files": list_directory(content),
        "index": [(_STATIC / name).read_text(encoding="utf-8") for name in _OUTSIDE],
    }
    return hashlib.sha256(_json(everything)).hexdigest()[:12]


def _write_json(path: Path, value: Any) -> None:
    path.write_bytes(_json(value))


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
