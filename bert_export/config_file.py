"""Loads what `--config` names: a `configs/NAME.py`, or a run's recorded config.json.

config_flags is always given this file, with the named one as its argument, so that
whatever is wrong with a config is one clear line.
"""

from __future__ import annotations

import re
import runpy
import traceback
from pathlib import Path
from typing import Any

from ml_collections import config_dict

from bert_export.config import default_config, read_json, resolve
from bert_export.errors import UserError


def get_config(path: str) -> config_dict.ConfigDict:
    """The options in a config file, over the defaults.

    Args:
      path: a Python file with a function `get_config()` that returns
        `default_config()` with changes, or JSON that `Config.to_json` wrote.

    Raises:
      UserError: the file is unreadable or fails, or an option in the JSON is unknown
        or impossible.
    """
    config = default_config()
    if path.endswith(".json"):
        values = read_json(path)
        resolve(values)
        config.update(values)
        return config
    if not Path(path).is_file():
        raise UserError(f"--config: there is no file {path}")
    try:
        config.update(_returned(path))
    except UserError:
        raise
    except Exception as error:  # It is Python and can fail in any way.
        raise UserError(_failure(path, error)) from error
    return config


def _returned(path: str) -> dict[str, Any]:
    """What the file's get_config() returns, as a plain mapping."""
    namespace = runpy.run_path(path)
    if "get_config" not in namespace:
        raise UserError(f"--config: {path} has no function get_config()")
    returned = namespace["get_config"]()
    if not isinstance(returned, config_dict.ConfigDict):
        raise UserError(
            f"--config: {path}: get_config() must return default_config() with "
            f"changes, found {returned!r}"
        )
    return returned.to_dict()


def _failure(path: str, error: Exception) -> str:
    """One line: the file, the line in it, and what went wrong."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == path
    ]
    message = str(error)
    if isinstance(error, SyntaxError):
        lines, message = [error.lineno], error.msg
    place = f"{path}:{lines[-1]}" if lines else path
    # ConfigDict's own message goes on with all keys and values.
    message = re.sub(r'Other fields present: ".*?}"', "", message.replace("\\n", " "))
    return f"--config: {place}: {type(error).__name__}: {' '.join(message.split())}"
