"""Options from a YAML file: the keys are the long options without dashes; unknown keys are an error."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saerl_fast.errors import FormatError, InputError

ODD_YAML = (ValueError, AttributeError, LookupError, RecursionError)
"""What yaml lets through from its own readers of dates and numbers."""


def apply_config(words: Sequence[str], commands: Mapping[str, argparse.ArgumentParser]) -> None:
    """Make the values of ``--config FILE`` the defaults of the command that the words name."""
    command = next((word for word in words if word in commands), None)
    finder = argparse.ArgumentParser(f"saerl {command or 'COMMAND'}", add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    path = finder.parse_known_args(list(words))[0].config
    if command is None or path is None:
        return
    parser = commands[command]
    options = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    values = {key.replace("-", "_"): value for key, value in _read(path).items()}
    if unknown := sorted(set(values) - set(options)):
        raise InputError(
            f"{path}: unknown keys {unknown} for `saerl {command}`; known are "
            f"{sorted(name.replace('_', '-') for name in options)}"
        )
    for name, value in values.items():
        options[name].default = _convert(options[name], value, path)
        options[name].required = False
        if not options[name].option_strings:
            options[name].nargs = "?"


def _read(path: str) -> dict[str, Any]:
    import yaml

    if not Path(path).is_file():
        raise FormatError(f"{path}: no such config file")
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, *ODD_YAML) as error:
        raise FormatError(f"{path}: not YAML: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise FormatError(f"{path}: a mapping of options to values is wanted; got {type(found).__name__}")
    return found


def _convert(action: argparse.Action, value: Any, path: str) -> Any:
    if isinstance(action, argparse._StoreTrueAction):
        if not isinstance(value, bool):
            raise InputError(f"{path}: {action.dest} must be true or false; got {value!r}")
        return value
    if value is not None and callable(action.type):
        try:
            value = action.type(value if isinstance(value, str) else json.dumps(value))
        except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
            raise InputError(f"{path}: {action.dest}: {value!r} is not acceptable: {error}") from error
    elif value is not None and isinstance(action, argparse._StoreAction) and action.nargs is None:
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise InputError(f"{path}: {action.dest} must be a word or a number; got {value!r:.80}. Put it in quotes")
        value = str(value)
    if action.choices is not None and value not in action.choices:
        raise InputError(f"{path}: {action.dest} must be one of {list(action.choices)}; got {value!r}")
    return value
