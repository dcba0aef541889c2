"""SparseFeatures: one sparse row per text, with what happened to the text and where the numbers came from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saerl_fast.errors import FormatError, InputError, ShapeError

if TYPE_CHECKING:
    import datasets
    import scipy.sparse
    import torch

FORMAT_VERSION = 1
MOST_FEATURES = 2**31
"""What int32 indices can name."""
STATUSES = ("ok", "empty", "truncated", "invalid", "nonfinite", "windowed")
USABLE = ("ok", "truncated", "windowed")
"""Statuses of rows that hold features."""


@dataclass(frozen=True)
class SparseFeatures:
    """Compressed sparse rows (CSR): row s holds ``values[indptr[s]:indptr[s+1]]`` at ``indices[...]``.

    indptr int64 [S+1]; indices int32 [nnz], sorted inside a row; values float32 or float16 [nnz];
    n_features M; ids [S], one per row, unique; status [S], one of STATUSES; n_tokens int32 [S], tokens
    pooled; hidden float32 [S, D], the mean hidden state over the same tokens, where it was kept;
    provenance: model, SAE, layer, pooling, versions.

    A row that could not be featurized (empty, invalid, nonfinite) is there, empty, with its status.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    values: NDArray[Any]
    n_features: int
    ids: tuple[str | int, ...]
    status: tuple[str, ...]
    n_tokens: NDArray[np.int32]
    hidden: NDArray[np.float32] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = len(self.ids)
        wanted = {"indptr": rows + 1, "status": rows, "n_tokens": rows}
        for name, length in wanted.items():
            if len(getattr(self, name)) != length:
                raise ShapeError(
                    f"SparseFeatures: {name} must have {length} entries for {rows} rows; got {len(getattr(self, name))}"
                )
        if len(self.indices) != len(self.values) or len(self.indices) != int(self.indptr[-1]):
            raise ShapeError(
                f"SparseFeatures: indptr ends at {int(self.indptr[-1])}, but there are "
                f"{len(self.indices)} indices and {len(self.values)} values"
            )
        # compared, not subtracted: a difference beyond 2^63 would wrap to a rise
        if int(self.indptr[0]) != 0 or bool((self.indptr[1:] < self.indptr[:-1]).any()):
            raise ShapeError("SparseFeatures: indptr must start at 0 and never fall")
        if not 0 <= self.n_features <= MOST_FEATURES:
            raise ShapeError(f"SparseFeatures: n_features must be from 0 to {MOST_FEATURES}; got {self.n_features}")
        if len(self.indices) and not 0 <= int(self.indices.min()) <= int(self.indices.max()) < self.n_features:
            raise ShapeError(f"SparseFeatures: indices must lie in [0, {self.n_features})")
        if not self._ascending():
            raise InputError("SparseFeatures: the indices of a row must be ascending and distinct")
        if unknown := set(self.status) - set(STATUSES):
            raise InputError(f"SparseFeatures: status must be one of {STATUSES}; got {sorted(unknown)}")
        if self.hidden is not None and (self.hidden.ndim != 2 or len(self.hidden) != rows):
            raise ShapeError(f"SparseFeatures: hidden must be [{rows}, D]; got {list(self.hidden.shape)}")

    def _ascending(self) -> bool:
        """Whether indices rise inside of every row."""
        rises = self.indices[1:] > self.indices[:-1]
        ends = self.indptr[1:-1]  # from one row to the next they may fall
        rises[ends[(ends > 0) & (ends < len(self.indices))] - 1] = True
        return bool(rises.all())

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.n_features

    @property
    def nnz(self) -> int:
        return len(self.values)

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Which rows hold features: status ok, truncated or windowed; bool [S]."""
        return np.array([status in USABLE for status in self.status], dtype=bool)

    def status_counts(self) -> dict[str, int]:
        """How many rows have each status, those that occur."""
        return {status: self.status.count(status) for status in STATUSES if status in self.status}

    def __getitem__(self, rows: slice | Sequence[int] | NDArray[Any]) -> SparseFeatures:
        """A selection of rows, in the order asked for: a slice, row numbers or a boolean mask."""
        picked = np.arange(len(self))[rows]
        if picked.ndim == 0:
            raise InputError("SparseFeatures: index with a slice, a list of rows or a mask, not a single row")
        lengths = np.diff(self.indptr)[picked]
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        source = np.repeat(self.indptr[:-1][picked] - indptr[:-1], lengths) + np.arange(indptr[-1])
        return SparseFeatures(
            indptr=indptr,
            indices=self.indices[source],
            values=self.values[source],
            n_features=self.n_features,
            ids=tuple(self.ids[i] for i in picked),
            status=tuple(self.status[i] for i in picked),
            n_tokens=self.n_tokens[picked],
            hidden=None if self.hidden is None else self.hidden[picked],
            provenance=self.provenance,
        )

    @staticmethod
    def concatenate(parts: Sequence[SparseFeatures]) -> SparseFeatures:
        """Rows of all parts, one after the other. The parts must come from one job."""
        if not parts:
            raise InputError("SparseFeatures.concatenate: at least one part is needed; got none")
        first = parts[0]
        for part in parts[1:]:
            if part.n_features != first.n_features or (part.hidden is None) != (first.hidden is None):
                raise InputError(
                    f"SparseFeatures.concatenate: parts differ: {first.n_features} and {part.n_features} features, "
                    f"hidden kept {first.hidden is not None} and {part.hidden is not None}"
                )
            if part.provenance != first.provenance:
                keys = sorted(
                    key
                    for key in {*first.provenance, *part.provenance}
                    if first.provenance.get(key) != part.provenance.get(key)
                )
                raise InputError(f"SparseFeatures.concatenate: the parts come from different jobs; {keys} differ")
        lengths = np.concatenate([np.diff(part.indptr) for part in parts])
        hidden = [part.hidden for part in parts if part.hidden is not None]
        return SparseFeatures(
            indptr=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            indices=np.concatenate([part.indices for part in parts]),
            values=np.concatenate([part.values for part in parts]),
            n_features=first.n_features,
            ids=tuple(i for part in parts for i in part.ids),
            status=tuple(s for part in parts for s in part.status),
            n_tokens=np.concatenate([part.n_tokens for part in parts]),
            hidden=np.concatenate(hidden) if hidden else None,
            provenance=first.provenance,
        )

    @staticmethod
    def gather(parts: Iterable[SparseFeatures], rows: NDArray[np.int64]) -> SparseFeatures:
        """Rows by their numbers, ascending, out of parts that come one after the other; no more is kept in memory.

        rows counts over all parts. Raises InputError where there is none, or one is beyond the last.
        """
        found, start = [], 0
        for part in parts:
            first, last = np.searchsorted(rows, [start, start + len(part)])
            if last > first:
                found.append(part[rows[first:last] - start])
            start += len(part)
        if not len(rows) or int(rows[0]) < 0 or int(rows[-1]) >= start:
            raise InputError(f"SparseFeatures.gather: wanted rows of 0 to {start - 1}; got {rows[:1]} to {rows[-1:]}")
        return SparseFeatures.concatenate(found)

    def to_scipy(self) -> scipy.sparse.csr_matrix:
        """A ``scipy.sparse.csr_matrix`` [S, M] that shares the arrays."""
        from scipy.sparse import csr_matrix

        return csr_matrix((self.values, self.indices, self.indptr), shape=self.shape)

    def to_torch(self) -> torch.Tensor:
        """A ``torch.sparse_csr`` tensor [S, M], float32."""
        import torch

        return torch.sparse_csr_tensor(
            torch.from_numpy(self.indptr.copy()),
            torch.from_numpy(self.indices.astype(np.int64)),
            torch.from_numpy(self.values.astype(np.float32)),
            size=self.shape,
            check_invariants=True,
        )

    def to_columns(self) -> dict[str, list[Any]]:
        """Columns for a ``datasets.Dataset``: saerl_idx (list of int), saerl_val (list of float), saerl_status."""
        bounds = list(zip(self.indptr[:-1], self.indptr[1:], strict=True))
        return {
            "saerl_idx": [self.indices[a:b].tolist() for a, b in bounds],
            "saerl_val": [self.values[a:b].tolist() for a, b in bounds],
            "saerl_status": list(self.status),
        }

    def add_to(self, dataset: datasets.Dataset) -> datasets.Dataset:
        """The dataset with the columns of ``to_columns``; its rows must be the rows of these features."""
        if len(dataset) != len(self):
            raise InputError(f"SparseFeatures.add_to: {len(self)} rows of features, {len(dataset)} in the dataset")
        for name, column in self.to_columns().items():
            dataset = dataset.add_column(name, column)
        return dataset

    def rows(self) -> Iterator[tuple[str | int, NDArray[np.int32], NDArray[Any]]]:
        """(id, indices, values) for each row."""
        for row, name in enumerate(self.ids):
            span = slice(self.indptr[row], self.indptr[row + 1])
            yield name, self.indices[span], self.values[span]

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """The arrays as tensors, as they are stored."""
        import torch

        arrays: dict[str, NDArray[Any]] = {
            "indptr": self.indptr,
            "indices": self.indices,
            "values": self.values,
            "n_tokens": self.n_tokens,
            "status": np.array([STATUSES.index(s) for s in self.status], dtype=np.uint8),
            "ids": np.frombuffer(json.dumps(list(self.ids)).encode(), dtype=np.uint8).copy(),
        }
        if self.hidden is not None:
            arrays["hidden"] = self.hidden
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file; provenance goes as JSON into its header, ids as JSON bytes."""
        from safetensors.torch import save_file

        save_file(self.to_tensors(), path, metadata={"saerl_fast": self.describe()})

    @staticmethod
    def load(path: str | os.PathLike[str]) -> SparseFeatures:
        """Read what ``save`` wrote. Raises UnsafeFileError or FormatError for anything else."""
        from saerl_fast.formats.safetensors_file import parse_json, read_file

        header, tensors = read_file(path)
        note = header.get("__metadata__", {}).get("saerl_fast")
        if not isinstance(note, str):
            raise FormatError(f"{path}: not a features file: its header has no saerl_fast entry")
        return SparseFeatures.from_tensors(
            tensors, parse_json(note.encode(errors="surrogatepass"), str(path)), origin=str(path)
        )

    def describe(self) -> str:
        """What is neither an array nor an id, as JSON."""
        return json.dumps(
            {
                "format_version": FORMAT_VERSION,
                "n_features": self.n_features,
                "provenance": dict(self.provenance),
            }
        )

    @staticmethod
    def from_tensors(tensors: Mapping[str, torch.Tensor], note: Mapping[str, Any], origin: str) -> SparseFeatures:
        """The opposite of ``to_tensors`` and ``describe``; every array is checked."""
        if note.get("format_version") != FORMAT_VERSION:
            raise FormatError(
                f"{origin}: format version {note.get('format_version')!r}; this release reads {FORMAT_VERSION}"
            )
        wanted = {
            "indptr": "int64",
            "indices": "int32",
            "values": None,
            "n_tokens": "int32",
            "status": "uint8",
            "ids": "uint8",
        }
        from saerl_fast.formats.safetensors_file import as_arrays

        arrays = as_arrays(tensors, origin)
        for name, dtype in wanted.items():
            if name not in arrays or arrays[name].ndim != 1 or (dtype and str(arrays[name].dtype) != dtype):
                raise FormatError(f"{origin}: array {name} is missing or not a vector of {dtype or 'floats'}")
        if arrays["values"].dtype not in (np.float32, np.float16) or (
            "hidden" in arrays and arrays["hidden"].dtype != np.float32
        ):
            raise FormatError(f"{origin}: values must be float32 or float16, hidden states float32")
        if arrays["status"].size and int(arrays["status"].max()) >= len(STATUSES):
            raise FormatError(f"{origin}: unknown status code {int(arrays['status'].max())}")
        if type(note.get("n_features")) is not int or not isinstance(note.get("provenance"), dict):
            raise FormatError(f"{origin}: n_features must be a whole number and provenance an object")
        return SparseFeatures(
            indptr=arrays["indptr"],
            indices=arrays["indices"],
            values=arrays["values"],
            n_features=note["n_features"],
            ids=_read_ids(arrays["ids"], origin),
            status=tuple(STATUSES[code] for code in arrays["status"]),
            n_tokens=arrays["n_tokens"],
            hidden=arrays.get("hidden"),
            provenance=note["provenance"],
        )


def _read_ids(raw: NDArray[np.uint8], origin: str) -> tuple[str | int, ...]:
    try:
        ids = json.loads(raw.tobytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{origin}: ids are not JSON: {error}") from error
    if not isinstance(ids, list) or not all(isinstance(i, str) or type(i) is int for i in ids):
        raise FormatError(f"{origin}: ids must be a list of strings or whole numbers")
    return tuple(ids)
