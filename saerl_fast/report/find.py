"""Which pieces of a run lie in a folder, up to two levels deep; told by their manifests, not by their names."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from saerl_fast.curriculum.files import JSON_NAME as PLAN
from saerl_fast.durable import read_object
from saerl_fast.errors import FormatError
from saerl_fast.extract.job import MANIFEST
from saerl_fast.extract.store import SANITY

logger = logging.getLogger(__name__)

DEPTH = 2
RUN, EVALUATION, SAE, DEMO = "run.json", "evaluation.json", "sae.json", "demo.json"
"""Files that tell a GRPO run, the scores of `saerl evaluate`, the sanity of an SAE, the settings of the demo.
Without sae.json, the sanity that featurize has left beside its features is shown."""
INNER = frozenset({"shards", "chunks", "eval", "model"})
"""Folders that belong to a piece and hold none themselves; so do checkpoint-N and hidden ones."""


@dataclass
class Pieces:
    """Paths of what was found; ``also`` are pieces of a kind of which one is shown and another was found first."""

    features: Path | None = None
    labels: Path | None = None
    evaluation: Path | None = None
    sae: Path | None = None
    sanity: Path | None = None
    demo: Path | None = None
    plans: list[Path] = field(default_factory=list)
    runs: list[Path] = field(default_factory=list)
    also: list[Path] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether nothing is there that a page could be about."""
        return not (self.features or self.labels or self.evaluation or self.sae or self.plans or self.runs)


def find_pieces(folder: Path) -> Pieces:
    """Raises FormatError (no folder, or no piece in it) and CorruptStoreError (a manifest that is no JSON)."""
    if not folder.is_dir():
        raise FormatError(f"{folder}: wanted the folder of a run; there is no such folder")
    pieces = Pieces()
    _visit(folder, DEPTH, pieces)
    if pieces.empty:
        raise FormatError(
            f"{folder}: wanted what saerl featurize, evaluate, label, plan or train has left, here or up to {DEPTH} "
            f"folders down; got none of it. Name the folder that holds the folders of your run"
        )
    for path in pieces.also:
        logger.warning("report: %s is left out; one of its kind is shown, and another was found first", path)
    return pieces


def _visit(folder: Path, depth: int, pieces: Pieces) -> None:
    """Take what lies in this folder, then go down, in the order of names."""
    if (folder / MANIFEST).is_file():
        manifest = read_object(folder / MANIFEST)
        if "shard_rows" in manifest:
            _take_one(pieces, "features", folder)
        elif "chunks" in manifest:
            _take_one(pieces, "labels", folder)
    for kind, name in (("evaluation", EVALUATION), ("sae", SAE), ("sanity", SANITY), ("demo", DEMO)):
        if (folder / name).is_file():
            _take_one(pieces, kind, folder / name)
    if (folder / PLAN).is_file():
        pieces.plans.append(folder)
    if (folder / RUN).is_file():
        pieces.runs.append(folder)
    if depth == 0:
        return
    for child in sorted(folder.iterdir()):
        if child.is_dir() and child.name not in INNER and not child.name.startswith((".", "checkpoint-")):
            _visit(child, depth - 1, pieces)


def _take_one(pieces: Pieces, kind: str, path: Path) -> None:
    if getattr(pieces, kind) is None:
        setattr(pieces, kind, path)
    else:
        pieces.also.append(path)
