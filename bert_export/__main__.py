"""The command line: `python -m bert_export COMMAND` and `bert-export COMMAND`."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from absl import flags

from bert_export import commands, config_file
from bert_export.config import check_key
from bert_export.errors import Failure, Terminated, UserError

_HELP = ("--help", "-h", "-help", "--helpshort", "-helpshort")
_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)(?:=.*)?", re.DOTALL)


def main(argv: list[str]) -> int:
    """Runs one command.

    Args:
      argv: program name, command and flags, as in `sys.argv`.

    Returns:
      The exit code: 0 done, 130 interrupted, or that of the failure (see `errors`).
    """
    # TensorFlow reads this when it is first imported; 3 leaves only fatal errors.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    before_help = argv[1 : argv.index("--")] if "--" in argv else argv[1:]
    try:
        if not before_help or any(argument in _HELP for argument in before_help):
            print(commands.usage(), flush=True)
            return 0
        _, *names = _parse_flags(argv)
        if not names or names[0] not in commands.COMMANDS:
            found = names[0] if names else "none"
            known = ", ".join(commands.COMMANDS)
            raise UserError(f"expected one command of {known}; found {found}")
        command, *given = names
        expected = commands.arguments(command)
        if len(given) != len(expected):
            raise UserError(
                f"{command}: expected {' '.join(expected) or 'only flags'} after it, "
                f"found {' '.join(given) or 'nothing'}"
            )
        commands.COMMANDS[command](*given)
    except (Failure, Terminated) as error:
        print(f"bert-export: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output has gone, as `| head` does.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 0
    except OSError as error:
        # Outside of any stage, as in reading an artifact.
        print(f"bert-export: {argv[1]} failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bert-export: interrupted; run again to go on", file=sys.stderr)
        return 130
    return 0


def entry_point() -> None:
    """The console script."""
    sys.exit(main(sys.argv))


def _parse_flags(argv: list[str]) -> list[str]:
    """The arguments that are not flags.

    Raises:
      UserError: an unknown flag, an impossible value, or a config file that fails.
    """
    argv = _through_config_file(argv)
    has_config = any(re.match("--?config(=|$)", argument) for argument in argv)
    for argument in argv:
        if override := _OVERRIDE.fullmatch(argument):
            check_key(override[1])
            if not has_config:
                raise UserError(
                    f"{argument}: name the config that this changes with --config=FILE "
                    "(an earlier run recorded its own in WORKDIR/config.json)"
                )
    # config_flags reads the overrides from there.
    sys.argv = argv
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        raise UserError(str(error)) from error


def _through_config_file(argv: list[str]) -> list[str]:
    """Makes `config_file` load what --config names: MODULE.py:FILE to config_flags."""
    loader = f"{Path(config_file.__file__)}:"
    changed = list(argv)
    for index, argument in enumerate(argv):
        if argument in ("--config", "-config") and index + 1 < len(argv):
            changed[index + 1] = loader + argv[index + 1]
        elif match := re.match("--?config=", argument):
            changed[index] = match[0] + loader + argument[match.end() :]
    return changed


if __name__ == "__main__":
    entry_point()
