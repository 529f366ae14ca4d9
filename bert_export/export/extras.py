"""The optional packages that some formats need."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator

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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drops what converters and quantizers write of their doings.

    Python's part of it has files of its own to go to, C++'s has not.
    """
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        kept = os.dup(1), os.dup(2)
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            for target, handle in zip((1, 2), kept):
                os.dup2(handle, target)
                os.close(handle)
