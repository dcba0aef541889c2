"""One door for SAEs: a folder of any format that is read here, or a name out of sae-lens's registry."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from saerl_fast.errors import FormatError, UnsafeFileError
from saerl_fast.formats import gemma_scope, llama_scope, registry, sae_lens, sparsify
from saerl_fast.kinds import DEVICE, WORDS, Kind, check_arguments, floating, is_path, whole
from saerl_fast.sae import SAE

LOADING: Mapping[str, Kind] = {
    "path": Kind("the folder of an SAE, or RELEASE/SAE_ID of sae-lens", is_path),
    "device": DEVICE.or_none,
    "dtype": floating().or_none,
    "metadata": Kind(
        "a dict, of words to what the SAE's files do not say",
        lambda value: isinstance(value, Mapping) and all(isinstance(name, str) for name in value),
    ).or_none,
}
"""What each argument of load_sae may be."""
NOTES: Mapping[str, Kind] = {
    **dict.fromkeys(("model_name", "hook_name", "hf_hook_name"), WORDS.or_none),
    "context_size": whole(1).or_none,
}
"""What the metadata that is read here may be; whatever else is in it is kept as it is."""
PICKLED = frozenset({".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"})
FORMATS: dict[str, tuple[tuple[str, ...], Callable[[Path], SAE]]] = {
    "sae-lens": ((sae_lens.CONFIG_FILE, sae_lens.WEIGHTS_FILE), sae_lens.read_folder),
    "sparsify": ((sparsify.CONFIG_FILE, sparsify.WEIGHTS_FILE), sparsify.read_folder),
    "Gemma Scope": ((gemma_scope.WEIGHTS_FILE,), gemma_scope.read_folder),
    "Llama Scope": ((llama_scope.CONFIG_FILE, llama_scope.WEIGHTS_FILE), llama_scope.read_folder),
}
"""The files by which a format is known, and its reader; the first that fits is taken."""


def load_sae(
    path: str | os.PathLike[str],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> SAE:
    """An SAE from a folder (sae-lens of any version, sparsify, Gemma Scope, Llama Scope) or from sae-lens's registry.

    path: the folder; or, where there is no such folder and sae-lens is installed, "release/sae_id" of its registry.
    device, dtype: where and in what the weights are wanted (default: CPU, as stored).
    metadata: what the files do not say of the SAE (model_name, hook_name, context_size), or say wrongly.
    Raises DtypeError or InputError for an argument of another type or out of range, UnsafeFileError for anything but
    JSON and well-formed safetensors or npz (pickles and ``.pt`` files are never loaded; ``saerl convert`` reads them),
    FormatError for an architecture or setting that is not supported.
    """
    given = {"path": path, "device": device, "dtype": dtype, "metadata": metadata}
    asked = check_arguments(given, LOADING)
    notes = check_notes(metadata)
    folder = Path(path)
    if folder.is_file():
        raise UnsafeFileError(
            f"{folder}: the folder of an SAE is wanted; got a single file, and a .pt file is never loaded. "
            f"{_advice(folder)}"
        )
    sae = _reader_of(folder)(folder) if folder.is_dir() else registry.load(str(path))
    if notes:
        sae = replace(sae, metadata={**sae.metadata, **notes})
    return sae.to(device, asked["dtype"])


def check_notes(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Metadata as somebody hands it in; DtypeError or InputError for an entry of another type or out of range."""
    notes = dict(metadata or {})
    named = {f"metadata[{name!r}]": kind for name, kind in NOTES.items() if name in notes}
    plain = check_arguments({f"metadata[{name!r}]": notes[name] for name in NOTES if name in notes}, named)
    return notes | {name: plain[f"metadata[{name!r}]"] for name in NOTES if name in notes}


def as_sae(sae: Any) -> SAE:
    """An SAE as it is, one of sae-lens as ours, or by path or name as ``load_sae`` has it."""
    if isinstance(sae, SAE):
        return sae
    return load_sae(sae) if isinstance(sae, (str, os.PathLike)) else registry.from_sae_lens(sae)


def _reader_of(folder: Path) -> Callable[[Path], SAE]:
    for files, read in FORMATS.values():
        if all((folder / name).exists() for name in files):
            return read
    names = sorted(path.name for path in folder.iterdir())
    if pickled := [name for name in names if Path(name).suffix in PICKLED]:
        raise UnsafeFileError(
            f"{folder}: found {pickled}, which can run code when loaded and are never loaded. {_advice(folder)}"
        )
    wanted = "; ".join(f"{name}: {' and '.join(files)}" for name, (files, _) in FORMATS.items())
    raise FormatError(f"{folder}: no SAE of a known format. Wanted {wanted}. Found {names[:20]}")


def _advice(path: Path) -> str:
    return f"`saerl convert {path} DIR` reads .pt files without running them, and writes a folder that can be loaded"
