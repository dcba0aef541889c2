"""What a value may be that somebody hands in: its type, its range, its plain form, and the error that names it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from saerl_fast.errors import DtypeError, InputError

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}

SHOWN = (str, bytes, int, float, list, tuple, dict, np.generic, type(None), torch.dtype, torch.device)
"""What a message shows as it came; of anything else it names the type."""


@dataclass(frozen=True)
class Kind:
    """What an argument may be. wanted: in words; is_one: its type; fits: its value; plain: the form it is used in."""

    wanted: str
    is_one: Callable[[Any], bool]
    fits: Callable[[Any], bool] = lambda value: True
    plain: Callable[[Any], Any] = lambda value: value

    @property
    def or_none(self) -> Kind:
        return replace(
            self,
            wanted=f"{self.wanted}, or None",
            is_one=lambda value: value is None or self.is_one(value),
            fits=lambda value: value is None or self.fits(value),
            plain=lambda value: None if value is None else self.plain(value),
        )

    def take(self, name: str, value: Any) -> Any:
        """The value in its plain form. Raises DtypeError for another type, InputError for a value out of range."""
        if not self.is_one(value):
            raise DtypeError(f"{name} must be {self.wanted}; got {_show(value)}")
        if not self.fits(value):
            raise InputError(f"{name} must be {self.wanted}; got {_show(value)}")
        return self.plain(value)


def _show(value: Any) -> str:
    named = type(value).__name__
    return f"{value!r:.80} ({named})" if isinstance(value, SHOWN) else named


def is_whole(value: Any) -> bool:
    """Whether it is a whole number of any type, and no bool."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a number, and no bool."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def whole(least: int | None = None) -> Kind:
    """A whole number of any type but bool, from ``least`` up."""
    wanted = "a whole number" if least is None else f"a whole number from {least} up"
    return Kind(wanted, is_whole, lambda value: least is None or value >= least, int)


def one_of(choices: Sequence[str]) -> Kind:
    """One of some words; any other value, of whatever type, is out of range."""
    return Kind(
        f"one of {tuple(choices)}", lambda value: True, lambda value: isinstance(value, str) and value in choices
    )


def instance(wanted: str, *types: Any) -> Kind:
    return Kind(wanted, lambda value: isinstance(value, types))


def floating(*words: str) -> Kind:
    """A floating dtype by name, or as it is; or one of some other words, which come back as they are."""
    named = "".join(f", '{word}' (the checkpoint's)" for word in words)
    return Kind(
        f"a floating dtype: one of {', '.join(DTYPES)}{named}, or the torch.dtype",
        lambda value: isinstance(value, (str, torch.dtype)),
        lambda value: value in (*words, *DTYPES) if isinstance(value, str) else value in DTYPES.values(),
        lambda value: DTYPES.get(value, value) if isinstance(value, str) else value,
    )


def is_path(value: Any) -> bool:
    """Whether it is a path, or a word that may be one."""
    return isinstance(value, (str, os.PathLike)) and value != ""


def _is_device(value: Any) -> bool:
    try:
        return torch.device(value).type != "meta"
    except RuntimeError:
        return False


SWITCH = Kind("True or False", lambda value: isinstance(value, (bool, np.bool_)), plain=bool)
WORDS = instance("a string", str)
DEVICE = Kind(
    "a torch.device, or a string that torch knows, such as 'cuda:1'",
    lambda value: isinstance(value, (str, torch.device)),
    _is_device,
)


def check_arguments(given: Mapping[str, Any], kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """The arguments by name in their plain form; DtypeError or InputError, with the name, for what cannot be taken."""
    return {name: kinds[name].take(name, value) for name, value in given.items()}
