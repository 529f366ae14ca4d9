"""The command line: `python -m bert_export COMMAND` and `bert-export COMMAND`."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from absl import flags

from bert_export import commands, json_config
from bert_export.errors import StageError, UserError

_HELP = ("--help", "-h", "-help", "--helpshort", "-helpshort")


def main(argv: list[str]) -> int:
    """Runs one command.

    Args:
      argv: program name, command and flags, as in `sys.argv`.

    Returns:
      The exit code: 0 done, 2 usage or bad input, 1 a stage failed, 130 interrupted.
    """
    # TensorFlow reads this when it is first imported; 3 leaves only fatal errors.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    before_help = argv[1 : argv.index("--")] if "--" in argv else argv[1:]
    if not before_help or any(argument in _HELP for argument in before_help):
        print(commands.usage())
        return 0
    # config_flags reads the overrides of --config from sys.argv.
    sys.argv = [_json_config(argument) for argument in argv]
    try:
        _, *names = _parse_flags(sys.argv)
        if len(names) != 1 or names[0] not in commands.COMMANDS:
            found = " ".join(names) or "none"
            known = ", ".join(commands.COMMANDS)
            raise UserError(f"expected one command of {known}; found {found}")
        commands.COMMANDS[names[0]]()
    except UserError as error:
        print(f"bert-export: {error}", file=sys.stderr)
        return 2
    except StageError as error:
        print(f"bert-export: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of our output has gone, as `| head` does.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 0
    except KeyboardInterrupt:
        print("bert-export: interrupted; run again to go on", file=sys.stderr)
        return 130
    return 0


def entry_point() -> None:
    """The console script."""
    sys.exit(main(sys.argv))


def _json_config(argument: str) -> str:
    """`--config=FILE.json` as config_flags takes it: MODULE.py:FILE.json."""
    flag, _, path = argument.partition("=")
    if flag.lstrip("-") == "config" and path.endswith(".json"):
        return f"{flag}={Path(json_config.__file__)}:{path}"
    return argument


def _parse_flags(argv: list[str]) -> list[str]:
    """The arguments that are not flags.

    Raises:
      UserError: an unknown flag, an impossible value, or a config file that fails.
    """
    try:
        return flags.FLAGS(argv)
    except UserError:
        raise
    except flags.Error as error:
        raise UserError(str(error)) from error
    except FileNotFoundError as error:
        raise UserError(f"--config: no such file: {error.filename}") from error
    except Exception as error:  # A config file is Python and can fail in any way.
        last = traceback.extract_tb(error.__traceback__)[-1]
        message = " ".join(str(error).split())
        raise UserError(
            f"--config: {type(error).__name__}: {message} "
            f"({Path(last.filename).name}, line {last.lineno})"
        ) from error


if __name__ == "__main__":
    entry_point()
