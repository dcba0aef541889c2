"""What a run was asked for, told without a model in memory: a finished folder asked for in the same words is only read.

The words are the arguments, texts, ids and columns, the SAE, the versions of what computes, and the files of the
model: each small one whole, and of each tensor PROBES pieces, as many numbers as the fingerprint of a job looks at,
so that a step of training is seen. They are a short cut and no part of a job: in other words (a folder that was
moved, a newer torch) the model is loaded and its fingerprint compared, as it is where nothing is finished.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from saerl_fast.durable import digest
from saerl_fast.extract.reader import hash_tokenizer
from saerl_fast.extract.settings import Request
from saerl_fast.sae import SAE

COMPUTING = ("saerl-fast", "torch", "transformers", "tokenizers", "triton", "flash-attn")
"""Packages whose versions may change a bit, or the way that is chosen."""
WEIGHTS = ".safetensors"
ADAPTER = "adapter_config.json"
"""A folder with it names another model, which is loaded beneath it."""
WHOLE_BYTES = 2**26
"""A file that holds no weights is read whole up to here."""
HEADER_BYTES = 2**27
NAMED_ELSEWHERE = ("tokenizer", "ids", "columns", "source")
PROBES = 16
PROBE_BYTES = 128


def asked(
    model: nn.Module | str | os.PathLike[str], sae: SAE, request: Request, contents: Mapping[str, Any]
) -> str | None:
    """SHA-256 over what was asked; None for a model that is in memory anyhow, or whose files do not tell what it is.

    contents: texts, ids, columns and SAE, as ``name_contents`` hashes them.
    """
    if isinstance(model, nn.Module):
        return None
    name = os.fspath(model)
    files = hash_model(find_folder(name))
    if files is None:
        return None
    arguments = {key: str(value) for key, value in vars(request).items() if key not in NAMED_ELSEWHERE}
    return digest(
        {
            **contents,
            "arguments": arguments,
            "tokenizer": None if request.tokenizer is None else hash_tokenizer(request.tokenizer),
            "model": [name, files],
            "sae_says": digest(dict(sae.metadata)),
            "cuda": torch.cuda.is_available(),
            "versions": {package: _version(package) for package in COMPUTING},
        }
    )


def find_folder(name: str) -> Path | None:
    """The folder of a model: the one named, or the snapshot of a hub id that transformers would load; None for none."""
    if Path(name).is_dir():
        return Path(name)
    from transformers.utils import cached_file

    try:
        found = cached_file(name, "config.json")
    except (OSError, ValueError):
        return None
    return None if found is None else Path(found).parent


def hash_model(folder: Path | None) -> str | None:
    """SHA-256 over names and sizes of a folder's files, all of the small ones and a sample of every tensor.

    None where the weights are not all in safetensors files of this folder, or one of these is not whole.
    """
    files = [] if folder is None else sorted(path for path in folder.iterdir() if path.is_file())
    names = {path.name for path in files}
    if ADAPTER in names or not any(name.endswith(WEIGHTS) for name in names):
        return None
    found = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        found.update(f"{path.name} {size}\n".encode(errors="surrogateescape"))
        if path.suffix == WEIGHTS:
            pieces = _sample(path, size)
            if pieces is None:
                return None
            for piece in pieces:
                found.update(piece)
        elif size <= WHOLE_BYTES:
            found.update(path.read_bytes())
    return found.hexdigest()


def _sample(path: Path, size: int) -> list[bytes] | None:
    """The header of a safetensors file, and PROBES pieces of each tensor, evenly spread; None where it is not whole."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(HEADER_BYTES, size - 8):
            return None
        header = file.read(length)
        spans = _spans(header)
        if spans is None or any(not 0 <= start <= stop <= size - 8 - length for start, stop in spans):
            return None
        return [header, *(_piece(file.fileno(), 8 + length + place) for place in _places(spans))]


def _spans(header: bytes) -> list[tuple[int, int]] | None:
    """Where each tensor begins and ends behind the header; None for a header that does not say so."""
    try:
        entries = json.loads(header)
        spans = [entry["data_offsets"] for name, entry in entries.items() if name != "__metadata__"]
        return [(int(start), int(stop)) for start, stop in spans]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _places(spans: Iterable[tuple[int, int]]) -> list[int]:
    """The first byte of each piece; the last piece of a tensor ends with it."""
    made = []
    for start, stop in spans:
        room = max(0, stop - start - PROBE_BYTES)
        made += sorted({start + room * piece // (PROBES - 1) for piece in range(PROBES)})
    return made


def _piece(file: int, place: int) -> bytes:
    return os.pread(file, PROBE_BYTES, place)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
