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
from saerl_fast.formats.sae_lens_config import check_metadata
from saerl_fast.sae import SAE

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
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> SAE:
    """An SAE from a folder (sae-lens of any version, sparsify, Gemma Scope, Llama Scope) or from sae-lens's registry.

    path: the folder; or, where there is no such folder and sae-lens is installed, "release/sae_id" of its registry.
    device, dtype: where and in what the weights are wanted (default: CPU, as stored).
    metadata: what the files do not say of the SAE (model_name, hook_name, context_size), or say wrongly.
    Raises UnsafeFileError for anything but JSON and well-formed safetensors or npz (pickles and ``.pt`` files are
    never loaded; ``saerl convert`` reads them), FormatError for an architecture or setting that is not supported.
    """
    folder = Path(path)
    if folder.is_file():
        raise UnsafeFileError(
            f"{folder}: the folder of an SAE is wanted; got a single file, and a .pt file is never loaded. "
            f"{_advice(folder)}"
        )
    sae = _reader_of(folder)(folder) if folder.is_dir() else registry.load(str(path))
    if metadata:
        check_metadata(path, dict(metadata))
        sae = replace(sae, metadata={**sae.metadata, **metadata})
    return sae.to(device, dtype)


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
