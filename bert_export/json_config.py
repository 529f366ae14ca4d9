"""The config file that stands for `--config=FILE.json`, a run's recorded config."""

from __future__ import annotations

from ml_collections import config_dict

from bert_export.config import default_config, read_json, resolve


def get_config(path: str) -> config_dict.ConfigDict:
    """The options in `path`, which `Config.to_json` wrote, over the defaults.

    Raises:
      UserError: the file is unreadable, or an option is unknown or impossible.
    """
    values = read_json(path)
    resolve(values)
    config = default_config()
    config.update(values)
    return config
