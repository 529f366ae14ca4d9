"""What is in a model base, for people: the versions, and whether one is well."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bert_export.errors import Failure, UserError
from bert_export.release.model_base import Check, ModelBase, Version
from bert_export.verification.run import run_smoke_test


def verify(base: ModelBase, version: int | None) -> tuple[int | None, list[Check]]:
    """Holds a version against what was published, then runs its smoke test.

    Args:
      base: where it is.
      version: None for the current one.

    Returns:
      Its number, None where current.json cannot be read, and the checks.

    Raises:
      UserError: there is no such version, or none at all.
    """
    checks = base.verify(version)
    if not all(is_well for _, is_well, _ in checks):
        # A model that is not what was published is a program that nobody should run.
        return version, checks
    if version is None:
        current = base.current()
        assert current is not None
        version = current.version
    with tempfile.TemporaryDirectory() as scratch:
        try:
            artifact = base.fetch(version, Path(scratch))
            result = run_smoke_test(artifact, Path(scratch) / "smoke_test.json")
        except UserError:
            raise
        except Failure as error:
            checks.append(("smoke test", False, str(error)))
        else:
            detail = f"{len(result['checks'])} checks"
            checks.append(("smoke test", True, detail))
    return version, checks


def checks_table(checks: Sequence[Check]) -> str:
    """A line a check."""
    return tabulate(
        [
            [name, "passed" if is_well else "failed", detail]
            for name, is_well, detail in checks
        ]
    )


def versions_table(versions: Sequence[Version]) -> str:
    """A line a version; metrics in percent, sizes in MB of 10^6 bytes."""
    if not versions:
        return "nothing has been published here"
    rows = [
        [
            version.version,
            version.state,
            version.date or "-",
            _percent(version.metrics.get("link_accuracy")),
            _percent(version.metrics.get("mrr")),
            _percent((version.metrics.get("nil") or {}).get("f1")),
            f"{version.bytes / 1e6:.1f}",
        ]
        for version in versions
    ]
    headers = ["version", "state", "published", "link acc. %", "MRR %", "NIL F1 %"]
    return tabulate(rows, headers=[*headers, "MB"], disable_numparse=True)


def _percent(value: Any) -> str:
    return f"{100 * value:.1f}" if isinstance(value, (int, float)) else "-"
