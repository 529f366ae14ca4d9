"""The alias table: which entities a surface form may refer to."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable

from bert_export.corpus.records import Entity


def normalize(surface: str) -> str:
    """Returns the form in which names are compared.

    NFKC, case-folded, NFKC again (folding may undo it), with runs of white space
    made one space: Unicode's caseless matching, section 3.13, D146.
    """
    if surface.isascii():
        return " ".join(surface.lower().split())
    folded = unicodedata.normalize("NFKC", surface).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


class AliasTable:
    """Maps a surface form to the entities that bear it."""

    def __init__(
        self,
        entities: Iterable[Entity],
        max_candidates: int,
        key: Callable[[str], str] = normalize,
    ):
        """Reads the names and aliases of all entities.

        Args:
          entities: In the order in which equally good candidates shall come.
          max_candidates: Candidates kept for a surface form.
          key: The form in which surfaces are compared.
        """
        self.max_candidates = max_candidates
        self._key = key
        named: dict[str, list[str]] = {}
        aliased: dict[str, list[str]] = {}
        for entity in entities:
            name = key(entity.name)
            named.setdefault(name, []).append(entity.id)
            # dict.fromkeys: aliases that differ in case only count once.
            for alias in dict.fromkeys(map(key, entity.aliases)):
                if alias and alias != name:
                    aliased.setdefault(alias, []).append(entity.id)
        for alias, ids in aliased.items():
            named.setdefault(alias, []).extend(ids)
        # By surface form, as it is compared; names come before aliases.
        self.candidates = {
            surface: tuple(ids[:max_candidates]) for surface, ids in named.items()
        }

    def lookup(self, surface: str) -> tuple[str, ...]:
        """Returns ids: entities of that name first, then of that alias."""
        return self.candidates.get(self._key(surface), ())
