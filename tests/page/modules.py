"""Runs the page's modules in Node."""

from __future__ import annotations

import functools
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bert_export import javascript
from bert_export.errors import UserError
from bert_export.export import tfjs_characters

PAGE = Path(tfjs_characters.__file__).with_name("tfjs_page")
HERE = Path(__file__).parent


@functools.cache
def node() -> str:
    try:
        return str(javascript.node())
    except UserError as error:
        pytest.skip(str(error))


@functools.cache
def characters(lower_case: bool = True) -> dict[str, Any]:
    return tfjs_characters.characters(lower_case)


def run(script: str, *arguments: str, given: Any = None, seconds: float = 120) -> Any:
    """What a script prints as JSON; `given` goes to its standard input, if anything."""
    process = subprocess.run(
        [node(), str(HERE / script), *arguments],
        input=None if given is None else json.dumps(given),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def encode(**given: Any) -> Any:
    return run("encode.mjs", str(PAGE), given=given)
