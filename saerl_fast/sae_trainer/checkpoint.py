"""One file that holds a training run between two steps: safetensors, with its numbers and a digest in the header."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from saerl_fast.durable import replace
from saerl_fast.errors import CorruptStoreError, UnsafeFileError
from saerl_fast.formats.safetensors_file import parse_json, read_file


def write_checkpoint(path: Path, numbers: Mapping[str, int], tensors: Mapping[str, Tensor]) -> None:
    """Replace the checkpoint: after a crash the file is the old one or the new one, whole."""
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(numbers, sort_keys=True)
    replace(path, save(kept, metadata={"numbers": text, "sha256": _digest(text, kept)}))


def read_checkpoint(path: Path) -> tuple[dict[str, int], dict[str, Tensor]]:
    """Numbers and tensors, on the CPU. Raises CorruptStoreError where a byte of them has changed."""
    advice = "delete it, and the training begins again"
    try:
        header, tensors = read_file(path)
        stated = header.get("__metadata__", {})
        numbers = parse_json(stated.get("numbers", "").encode(), str(path))
    except UnsafeFileError as error:
        raise CorruptStoreError(f"{path}: not a whole checkpoint ({error}); {advice}") from error
    if _digest(stated["numbers"], tensors) != stated.get("sha256"):
        raise CorruptStoreError(f"{path}: content does not match its SHA-256; {advice}")
    return numbers, tensors


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
