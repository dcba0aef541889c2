"""Verifiers by name, and what they return checked.

A verifier is a function ``(completion, answer, **row) -> bool or number``. ``completion`` and ``answer`` are
strings; ``row`` holds the other columns of the row, as far as the function names them or takes ``**``.
"""

from __future__ import annotations

import importlib
import inspect
import math
import numbers
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from saerl_fast.errors import InputError, VerifierError
from saerl_fast.rl.verify import is_correct

BUILT_IN = ("math", "maths")
SHOWN = 300
"""Characters of a completion in an error message."""


@dataclass(frozen=True)
class Verifier:
    """A verifying function with its name and what of a row it takes (None: all columns)."""

    function: Callable[..., Any]
    name: str
    takes: frozenset[str] | None

    def score(self, completion: str, row: Mapping[str, Any], answer_field: str, row_id: object) -> float:
        """The score of one completion as a finite float; VerifierError, with the row, for anything else."""
        more = {
            key: value
            for key, value in row.items()
            if key not in ("completion", "answer") and (self.takes is None or key in self.takes)
        }
        where = f"verifier {self.name}, row {row_id!r}, completion {completion[:SHOWN]!r}"
        try:
            found = self.function(completion, str(row[answer_field]), **more)
        except (Exception, SystemExit) as error:  # exit() in it must not end the run without a word
            raise VerifierError(f"{where}: raised {type(error).__name__}: {error}") from error
        if not isinstance(found, (bool, np.bool_, numbers.Real)):
            raise VerifierError(f"{where}: wanted True, False or a number; got {found!r:.80} ({type(found).__name__})")
        score = float(found)
        if not math.isfinite(score):
            raise VerifierError(f"{where}: wanted a finite number; got {score}. Score a doubtful completion as 0")
        return score


def find_verifier(wanted: str | Callable[..., Any] | Verifier) -> Verifier:
    """A verifier from "math" (built in), "module:function" (or "package.module.function"), or a function.

    Modules are looked for as ``import`` does, then in the current folder. The module runs: name only code
    that you trust. Raises InputError where there is no such function.
    """
    if isinstance(wanted, Verifier):
        return wanted
    if callable(wanted):
        return Verifier(wanted, _name_of(wanted), _columns_taken(wanted))
    if wanted in BUILT_IN:
        return Verifier(is_correct, "math", frozenset())
    mark = ":" if ":" in wanted else "."
    module_name, _, name = wanted.rpartition(mark)
    if not module_name or not name:
        raise InputError(f'verifier: wanted "math" or "module:function"; got {wanted!r}')
    found: Any = _import(module_name, wanted)
    for part in name.split("."):
        if not hasattr(found, part):
            raise InputError(f"verifier {wanted!r}: module {module_name!r} has no {name!r}")
        found = getattr(found, part)
    if not callable(found):
        raise InputError(f"verifier {wanted!r}: wanted a function; got {type(found).__name__}")
    return Verifier(found, wanted, _columns_taken(found))


def _import(module_name: str, wanted: str) -> Any:
    here = os.getcwd()
    # a console script does not have the current folder on its path; python -m has
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.append(here)
    try:
        return importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"verifier {wanted!r}: cannot import {module_name!r} ({error}); it must be installed, on PYTHONPATH, "
            f"or in the current folder {here}"
        ) from error
    finally:
        if added:
            sys.path.remove(here)


def _name_of(function: Callable[..., Any]) -> str:
    name = getattr(function, "__qualname__", type(function).__name__)
    return f"{getattr(function, '__module__', '?')}:{name}"


def _columns_taken(function: Callable[..., Any]) -> frozenset[str] | None:
    """Names of the parameters behind the first two; None where the function takes any keyword."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return frozenset()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return None
    keyword = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    first = [p for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY][:2]
    return frozenset(p.name for p in parameters if p.kind in keyword and p not in first)
