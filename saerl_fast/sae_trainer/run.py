"""train_sae: from texts and a model to the folder of an SAE.

::

    DIR/  LOCK  manifest.json  progress.jsonl  checkpoint.safetensors        while it runs
          cfg.json  sae_weights.safetensors  sanity.json                     when it is done; the checkpoint goes

The manifest names the run by everything that changes a weight; sanity.json comes last.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from saerl_fast import __version__
from saerl_fast.durable import enter_manifest, read_object, remove, replace, sole_writer
from saerl_fast.errors import CorruptStoreError, InputError, JobMismatchError
from saerl_fast.extract.hooks import Hook, block_output, parse_hook
from saerl_fast.extract.inputs import read_texts
from saerl_fast.extract.reader import Reader, open_reader
from saerl_fast.extract.sanity import what_is_off
from saerl_fast.extract.settings import TOKENS_PER_BATCH, hash_each
from saerl_fast.extract.store import SANITY
from saerl_fast.extract.stream import ActivationStream, read_rows
from saerl_fast.extract.tokens import Text, check_texts
from saerl_fast.formats import load_sae
from saerl_fast.formats.sae_lens import CONFIG_FILE
from saerl_fast.kinds import check_arguments
from saerl_fast.sae import SAE, SAESanity, sanity
from saerl_fast.sae_trainer.fit import CHECKPOINT, export, fit, need_sae_lens
from saerl_fast.sae_trainer.recipe import TRAINING, Kind, Recipe

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MOST_HELD_OUT, HELD_OUT_TOKENS = 512, 16_384
"""Texts that are set aside at most, and tokens of them that the last figures are taken on."""


@dataclass(frozen=True)
class TrainedSAE:
    """A finished run: the SAE as it was saved, its figures on ``held_out_tokens`` tokens it never saw, its folder."""

    sae: SAE
    sanity: SAESanity
    held_out_tokens: int
    folder: Path


def train_sae(
    texts: Sequence[Text] | datasets.Dataset,
    model: nn.Module | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    tokens: int,
    k: int,
    kind: Kind = "topk",
    width: int | None = None,
    expansion: int | None = None,
    layer: int | None = None,
    hook: str | None = None,
    tokenizer: Any = None,
    text_field: str | None = None,
    held_out: Sequence[Text] | None = None,
    batch_rows: int = 4096,
    buffer_rows: int | None = None,
    lr: float = 1e-3,
    seed: int = 0,
    max_length: int = 1024,
    skip_first: int = 0,
    tokens_per_batch: int | None = None,
    checkpoint_every: int = 500,
    metadata: Mapping[str, Any] | None = None,
    source: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = True,
) -> TrainedSAE:
    """Train a TopK or BatchTopK SAE on a model's activations, with sae-lens's ``SAETrainer``.

    texts: as for ``featurize``, read over and over in random order; special tokens and padding are not trained on.
    model, tokenizer, device, dtype: as for ``featurize``. The SAE is trained where the model is, in float32.
    out: the folder; load_sae and sae-lens read it. A run that was killed goes on there: at most checkpoint_every steps
        are done again, and on one CPU with one number of threads its weights are those of an undisturbed run, bit for
        bit. A finished run is read.
    layer: the block whose output is read, counted from 0; or hook: a sae-lens name or module path.
    kind, k: "topk" has k latents active on every token, "batchtopk" k on average over a batch; the latter is saved as
        JumpReLU with one threshold, as sae-lens does it.
    width: latents, or expansion: latents per channel of the activations; one of the two.
    tokens: activations to train on, in tokens // batch_rows steps. lr: of Adam; it rises over the first 5 %, falls over
        the last 20 %.
    buffer_rows: activations that are mixed at once, default 16 batches; they are part of a checkpoint.
    max_length: texts are cut at so many tokens (and at the model's limit). skip_first: tokens at the beginning of a
        text to leave out; 1 for models without BOS whose first token carries a massive activation (Qwen).
    held_out: texts for the last figures. Default: 1 % of the texts (one at least, 512 at most), drawn by ``seed`` and
        not trained on.
    metadata: entries of the SAE's own metadata, over model_name, hook_name, context_size and prepend_bos.
    source: a note kept in the manifest.

    Returns the SAE and its explained variance, L0 and dead share on held-out tokens, also in sanity.json; every
    checkpoint adds a line to progress.jsonl.

    Raises InputError, MissingDependency (no sae-lens), ModelMismatchError, JobMismatchError (a folder of another run,
    with the settings that differ), NonFiniteError, and the errors of the folder.
    """
    given = locals()
    need_sae_lens()
    asked = check_arguments({name: given[name] for name in TRAINING}, TRAINING)
    if (width is None) == (expansion is None):
        raise InputError(f"one of width and expansion is wanted; got width={width!r}, expansion={expansion!r}")
    rows = read_texts(texts, text_field)
    check_texts(rows)
    trained_on, held_out = (rows, list(held_out)) if held_out is not None else set_aside(rows, seed)
    # refuses before the model is loaded; the width that expansion means is known only after that
    recipe = Recipe.of(asked, asked["width"] or asked["k"])
    reader = open_reader(model, _choose_place(layer, hook), tokenizer=tokenizer, device=device, dtype=dtype)
    reading = _Reading.of(reader, asked)
    unseen = _held_out_rows(held_out, reader, reading)
    if expansion is not None:
        recipe = Recipe.of(asked, asked["expansion"] * unseen.shape[1])
    buffer_rows = asked["buffer_rows"] or 16 * recipe.batch_rows
    stream = ActivationStream(
        trained_on, reader, batch_rows=recipe.batch_rows, buffer_rows=buffer_rows, seed=recipe.seed, **asdict(reading)
    )
    about = {
        "model_name": reader.name,
        "hook_name": str(reader.hook),
        "context_size": reading.max_length,
        "prepend_bos": _begins_with_bos(reader.tokenizer),
        **(metadata or {}),
    }
    fingerprint = {
        **reader.fingerprint(),
        **asdict(recipe),
        **asdict(reading),
        "hook": str(reader.hook),
        "buffer_rows": buffer_rows,
        "texts": hash_each(trained_on),
        "held_out": hash_each(held_out),
        "metadata": about,
        **_versions(),
    }
    folder = Path(out)
    manifest = {"format_version": FORMAT_VERSION, "fingerprint": fingerprint, "source": dict(source or {})}
    with sole_writer(_refuse_foreign(folder)):
        enter_manifest(folder / MANIFEST, manifest)
        if not (folder / SANITY).exists():
            heads = reader.hook.point == "attn_z"
            trainer = fit(
                stream, recipe, folder, checkpoint_every=asked["checkpoint_every"], heads=heads, progress=progress
            )
            export(trainer, folder, about)
            _measure(folder, unseen, recipe)
        remove(folder / CHECKPOINT)
        return _read_finished(folder)


@dataclass(frozen=True)
class _Reading:
    max_length: int
    tokens_per_batch: int
    skip_first: int

    @classmethod
    def of(cls, reader: Reader, asked: Mapping[str, Any]) -> _Reading:
        """From the arguments of train_sae, in their plain form."""
        skip_first, max_length = asked["skip_first"], asked["max_length"]
        if max_length <= skip_first:
            raise InputError(f"max_length must be above skip_first = {skip_first}; got {max_length}")
        kind = "cuda" if reader.device.type == "cuda" else "cpu"
        limit = min(max_length, reader.max_positions or max_length)
        return cls(limit, asked["tokens_per_batch"] or TOKENS_PER_BATCH[kind], skip_first)


def set_aside(texts: Sequence[Text], seed: int) -> tuple[list[Text], list[Text]]:
    """The texts to train on, and 1 % of them (one at least, MOST_HELD_OUT at most) that are not."""
    if len(texts) < 2:
        raise InputError(f"at least 2 texts are wanted, one of them held out; got {len(texts)}. Or pass held_out=[...]")
    count = min(MOST_HELD_OUT, max(1, len(texts) // 100))
    chosen = set(torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))[:count].tolist())
    return [text for i, text in enumerate(texts) if i not in chosen], [texts[i] for i in sorted(chosen)]


def _choose_place(layer: int | None, hook: str | None) -> Hook:
    if (layer is None) == (hook is None):
        raise InputError(f"one of layer and hook is wanted, to say what is read; got layer={layer!r}, hook={hook!r}")
    return block_output(layer) if layer is not None else parse_hook(str(hook))


def _held_out_rows(texts: Sequence[Text], reader: Reader, reading: _Reading) -> Tensor:
    """Activations [N, D] of texts that are not trained on, N a little above HELD_OUT_TOKENS at most."""
    found: list[Tensor] = []
    for text in texts:
        found += read_rows([text], reader, **asdict(reading))
        if sum(map(len, found)) >= HELD_OUT_TOKENS:
            break
    if not found:
        raise InputError(f"none of the {len(texts)} held-out texts has a token to read; pass others as held_out=[...]")
    return torch.cat(found)


def _begins_with_bos(tokenizer: Any) -> bool:
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]


def _versions() -> dict[str, str]:
    import sae_lens

    return {"saerl_fast": __version__, "sae_lens": sae_lens.__version__, "torch": torch.__version__}


def _refuse_foreign(folder: Path) -> Path:
    """The folder; JobMismatchError where an SAE lies there that no run of ours has made."""
    if (folder / CONFIG_FILE).exists() and not (folder / MANIFEST).exists():
        raise JobMismatchError(f"{folder}: an SAE that was not trained there ({CONFIG_FILE}). Choose another folder")
    return folder


def _measure(folder: Path, rows: Tensor, recipe: Recipe) -> None:
    """sanity.json: the figures of the SAE as it was saved, on tokens that it was not trained on."""
    sae = load_sae(folder, device=rows.device)
    found = sanity(sae, rows)
    size = {"k": recipe.k, "promised_l0": recipe.k, "d_sae": sae.d_sae}
    report = {**asdict(found), "rows": len(rows), **size, "tokens_trained_on": recipe.steps * recipe.batch_rows}
    replace(folder / SANITY, (json.dumps(report, indent=1) + "\n").encode())
    for doubt in what_is_off(found, sae, len(rows)):
        logger.warning(
            "train-sae: on tokens it was not trained on, %s. Train on more tokens, raise k or width, or look at lr and "
            "skip_first",
            doubt,
        )


def _read_finished(folder: Path) -> TrainedSAE:
    report = read_object(folder / SANITY)
    names = [field.name for field in fields(SAESanity)]
    if missing := sorted({*names, "rows"} - set(report)):
        raise CorruptStoreError(f"{folder / SANITY}: lacks {missing}; delete the file and run again")
    return TrainedSAE(load_sae(folder), SAESanity(**{name: report[name] for name in names}), report["rows"], folder)
