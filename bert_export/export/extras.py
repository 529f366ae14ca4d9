"""The optional packages that some formats need."""

from __future__ import annotations

import importlib.util

from bert_export.errors import UserError


def require(extra: str, *modules: str) -> None:
    """Makes sure that an extra's packages are installed; imports none of them.

    Args:
      extra: one of pyproject.toml's optional-dependencies, named as the format is.
      modules: the top-level modules that the format needs.

    Raises:
      UserError: some are missing; it names them and the extra that installs them.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"the format {extra} needs {', '.join(missing)}, which cannot be found: "
            f"pip install 'bert_export[{extra}]'"
        )
