"""The forward up to the hook, and featurize as a whole, on texts as long as maths problems.

Proof by the rule of twice the error: on a sample of texts, against the same weights in float64, ours may be off by at
most twice what the Hugging Face way in the same type is off by.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from saerl_fast.bench.contest import Contest, Verdict
from saerl_fast.bench.data import Integers
from saerl_fast.bench.gpu_data import as_text, operations_of, problem_lengths, random_ids, random_model, word_tokenizer
from saerl_fast.bench.gpu_encode import backend_on
from saerl_fast.errors import BackendUnavailable, InputError
from saerl_fast.extract.batching import Batch
from saerl_fast.extract.capture import Capture
from saerl_fast.extract.compiling import Forward, choose_forward
from saerl_fast.extract.hooks import block_output
from saerl_fast.extract.packing import Layout, Wish, choose_layout
from saerl_fast.extract.reader import Reader
from saerl_fast.extract.tokens import TokenizedText
from saerl_fast.features import SparseFeatures
from saerl_fast.featurizer import featurize
from saerl_fast.sae import SAE

USUAL_BATCH = 32
"""Texts in a batch of the Hugging Face way."""
PROVED_TEXTS = 6
PEAK_SIZE = 8192
"""Rows and columns of the product that shows what the device can do."""


@dataclass(frozen=True)
class Reading:
    """Texts, and a model that is read at the output of one block; what all rows of this file share."""

    shape: str
    layer: int
    longest: int
    tokens_per_batch: int
    lengths: Integers
    ids: Sequence[Integers]
    model: Any
    device: torch.device
    padded: bool = False

    @cached_property
    def reader(self) -> Reader:
        tokenizer = word_tokenizer(self.model.get_input_embeddings().num_embeddings)
        return Reader(self.model, tokenizer, block_output(self.layer), self.shape)

    @property
    def packing(self) -> Wish:
        """On a CPU, where this only shows that all of it runs, texts are packed too."""
        if self.padded:
            return "off"
        return "auto" if self.device.type == "cuda" else "on"

    @cached_property
    def layout(self) -> Layout:
        return choose_layout(self.reader, self.packing, self.longest)

    @cached_property
    def texts(self) -> list[TokenizedText]:
        return [TokenizedText(row, np.ones(len(row), dtype=bool), "ok") for row in self.ids]

    @cached_property
    def batches(self) -> list[tuple[Integers, Batch]]:
        """Rows and batch, on the device."""
        groups = self.layout.group(self.lengths.tolist(), self.tokens_per_batch)
        return [(rows, self.collate(self.layout, rows)) for rows in groups]

    def collate(self, layout: Layout, rows: Integers) -> Batch:
        return layout.collate([self.texts[row] for row in rows], 0, "right", self.device)

    def sample(self) -> Integers:
        """Texts to be proved, short and long."""
        order = np.argsort(self.lengths, kind="stable")
        return np.sort(order[np.linspace(0, len(order) - 1, PROVED_TEXTS).astype(int)])

    def usual_batches(self) -> list[tuple[Tensor, Tensor]]:
        """ids and mask of the Hugging Face way: texts as they come, padded on the right to the longest of 32."""
        made = []
        for start in range(0, len(self.ids), USUAL_BATCH):
            rows = self.ids[start : start + USUAL_BATCH]
            width = max(len(row) for row in rows)
            ids, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
            for at, row in enumerate(rows):
                ids[at, : len(row)], mask[at, : len(row)] = row, 1
            made.append((torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device)))
        return made

    def true_hidden(self, row: int) -> Tensor:
        """One text alone, in float64 [T, D]."""
        ids = torch.from_numpy(self.ids[row])[None].to(self.device)
        with torch.inference_mode():
            hidden: Tensor = self._true_model(input_ids=ids, output_hidden_states=True).hidden_states[self.layer + 1]
        return hidden[0]

    @cached_property
    def _true_model(self) -> Any:
        return copy.deepcopy(self.model).double()


def reading(shape: str, layer: int, texts: int, longest: int, tokens_per_batch: int, device: torch.device) -> Reading:
    """Random weights of a published shape, random tokens, lengths of maths problems."""
    lengths = problem_lengths(texts, longest)
    model = random_model(shape, device)
    ids = random_ids(lengths, model.get_input_embeddings().num_embeddings)
    return Reading(shape, layer, longest, tokens_per_batch, lengths, ids, model, device)


AS_THEY_ARE = Forward(None, "")


def bare_forward(read: Reading, forward: Forward = AS_THEY_ARE) -> list[Tensor]:
    """Activations of all batches, which lie on the device already."""
    hook = block_output(read.layer)
    with Capture(read.model, hook) as capture, read.layout.on(read.model), forward.on(read.reader):
        return [capture(batch).flatten(0, 1).index_select(0, batch.kept) for _, batch in read.batches]


def usual_hidden(read: Reading, batches: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """The Hugging Face way: the whole model, all hidden states, padding; [B, T, D] of each batch."""
    with torch.inference_mode():
        return [
            read.model(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True).hidden_states[
                read.layer + 1
            ]
            for ids, mask in batches
        ]


def capture(shape: str, layer: int, texts: int, longest: int, tokens_per_batch: int, device: torch.device) -> Contest:
    """Packed, ended at the hook; against the usual way on the same texts."""
    read = reading(shape, layer, texts, longest, tokens_per_batch, device)
    usual = read.usual_batches()
    return Contest(
        ours=lambda: bare_forward(read),
        baselines={"transformers, batch 32, padded, output_hidden_states": lambda: usual_hidden(read, usual)},
        prove=lambda hidden: prove_hidden(read, hidden),
        backend=read.layout.name,
        facts=_facts(read),
    )


def capture_packed(
    shape: str, layer: int, texts: int, longest: int, tokens_per_batch: int, device: torch.device
) -> Contest:
    """Packed against padded texts of like length, both ended at the hook: what laying them end to end saves."""
    read = reading(shape, layer, texts, longest, tokens_per_batch, device)
    padded = replace(read, padded=True)
    return Contest(
        ours=lambda: bare_forward(read),
        baselines={"padded, texts of like length": lambda: bare_forward(padded)},
        prove=lambda hidden: prove_hidden(read, hidden),
        backend=read.layout.name,
        facts=_facts(read),
    )


def capture_compiled(
    shape: str, layer: int, texts: int, longest: int, tokens_per_batch: int, device: torch.device
) -> Contest:
    """The same batches through compiled blocks and through blocks as they are."""
    read = reading(shape, layer, texts, longest, tokens_per_batch, device)
    try:
        forward = choose_forward(read.reader, read.layout, "on")
    except InputError as error:
        raise BackendUnavailable(str(error)) from error
    return Contest(
        ours=lambda: bare_forward(read, forward),
        baselines={"the same blocks, not compiled": lambda: bare_forward(read)},
        prove=lambda hidden: prove_hidden(read, hidden),
        backend=f"{read.layout.name}; {forward.name}",
        facts=_facts(read),
    )


def mfu(shape: str, layer: int, texts: int, longest: int, tokens_per_batch: int, device: torch.device) -> Contest:
    """The same forward; beside it one large product, for what the device can do."""
    read = reading(shape, layer, texts, longest, tokens_per_batch, device)
    size = PEAK_SIZE if device.type == "cuda" else 64
    generator = torch.Generator(device).manual_seed(11)
    dtype = next(read.model.parameters()).dtype
    left, right = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    return Contest(
        ours=lambda: bare_forward(read),
        baselines={"one product": lambda: left @ right},
        prove=lambda hidden: prove_hidden(read, hidden),
        backend=read.layout.name,
        facts=_facts(read)
        | {"operations": operations_of(shape, layer + 1, read.lengths), "product_operations": 2.0 * size**3},
    )


def _facts(read: Reading) -> dict[str, Any]:
    return {"tokens": int(read.lengths.sum()), "layout": read.layout.name, "why": read.layout.reason}


def prove_hidden(read: Reading, hidden: Sequence[Tensor]) -> Verdict:
    """By the rule of twice the error, on a sample of texts."""
    found: dict[int, tuple[Tensor, list[int]]] = {}
    for (rows, batch), kept in zip(read.batches, hidden, strict=True):
        found |= {
            int(row): (kept, span) for row, span in zip(rows, batch.offsets.unfold(0, 2, 1).tolist(), strict=True)
        }
    sample = read.sample()
    usual = usual_hidden(read, [_padded(read, sample)])[0]
    worst = [0.0, 0.0]
    for at, row in enumerate(sample.tolist()):
        kept, (start, stop) = found[row]
        true = read.true_hidden(row)
        for side, rows_ in enumerate((kept[start:stop], usual[at, : len(true)])):
            if rows_.shape != true.shape:
                return Verdict(f"text {row} has {len(true)} tokens; got {list(rows_.shape)}")
            worst[side] = max(worst[side], _off_by(rows_, true))
    return _twice(worst[0], worst[1])


def _padded(read: Reading, rows: Integers) -> tuple[Tensor, Tensor]:
    batch = read.collate(Layout(None, ""), rows)
    return batch.input_ids, batch.attention_mask


def _off_by(found: Tensor, true: Tensor) -> float:
    """The largest relative difference of a row."""
    error = torch.linalg.vector_norm(found.double() - true, dim=-1)
    return float((error / torch.linalg.vector_norm(true, dim=-1).clamp(min=1e-300)).max())


def _twice(ours: float, theirs: float) -> Verdict:
    if not ours <= 2 * theirs:
        return Verdict(f"off by {ours:.3g} of float64, the usual way by {theirs:.3g}")
    return Verdict(facts={"off_by": ours, "usual_off_by": theirs})


def random_sae(width: int, latents: int, k: int, device: torch.device, dtype: torch.dtype) -> SAE:
    """A TopK SAE of unit encoder rows."""
    generator = torch.Generator(device).manual_seed(12)
    w_enc = functional.normalize(torch.randn(latents, width, device=device, generator=generator)).to(dtype)
    zeros = torch.zeros(latents, device=device, dtype=dtype)
    return SAE(w_enc, zeros, w_enc, zeros[:width].clone(), kind="topk", k=k)


def featurize_over_forward(
    shape: str, layer: int, texts: int, longest: int, tokens_per_batch: int, latents: int, k: int, device: torch.device
) -> Contest:
    """featurize, tokenizing, encode, pooling and fetching included, against the bare forward alone."""
    read = reading(shape, layer, texts, longest, tokens_per_batch, device)
    return _featurize(read, latents, k, lambda _: {"the forward alone": lambda: bare_forward(read)})


def featurize_all(
    shape: str, layer: int, texts: int, longest: int, tokens_per_batch: int, latents: int, k: int, device: torch.device
) -> Contest:
    """featurize against a loop of the usual kind: a hook, dense codes, topk, mean pooling, batch 32."""
    read = reading(shape, layer, texts, longest, tokens_per_batch, device)
    return _featurize(
        read, latents, k, lambda sae: {"a Hugging Face loop, batch 32": lambda: usual_features(read, sae)}
    )


def _featurize(read: Reading, latents: int, k: int, against: Callable[[SAE], dict[str, Any]]) -> Contest:
    sae = random_sae(int(read.model.config.hidden_size), latents, k, read.device, next(read.model.parameters()).dtype)
    words = [as_text(ids) for ids in read.ids]
    width = sae.d_in

    def ours() -> SparseFeatures:
        return featurize(
            words, read.model, sae, tokenizer=read.reader.tokenizer, layer=read.layer, max_length=read.longest,
            tokens_per_batch=read.tokens_per_batch, packing=read.packing, progress=False,
        )  # fmt: skip

    encoder = backend_on(read.device, "topk_encode", k=k, latents=latents, width=width)
    return Contest(
        ours=ours,
        baselines=against(sae),
        prove=lambda features: prove_features(read, sae, features),
        backend=f"{read.layout.name}; {encoder}, {backend_on(read.device, 'segment_pool', latents=latents)}",
        facts=_facts(read),
    )


def usual_features(read: Reading, sae: SAE, rows: Sequence[int] | None = None) -> Tensor:
    """Dense mean-pooled codes [texts, M] of the texts, or of some of them."""
    chosen = list(range(len(read.ids))) if rows is None else list(rows)
    tokenizer, made = read.reader.tokenizer, []
    block = read.model.layers[read.layer]
    seen: list[Tensor] = []
    handle = block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        for start in range(0, len(chosen), USUAL_BATCH):
            words = [as_text(read.ids[row]) for row in chosen[start : start + USUAL_BATCH]]
            batch = tokenizer(words, return_tensors="pt", padding=True).to(read.device)
            with torch.inference_mode():
                read.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
                hidden = seen.pop()
                top = torch.addmm(sae.b_enc, hidden.flatten(0, 1), sae.w_enc.T).topk(sae.k or 0, dim=1)
                dense = torch.zeros(len(top.values), sae.d_sae, dtype=hidden.dtype, device=hidden.device)
                dense.scatter_(1, top.indices, top.values.relu())
                mask = batch["attention_mask"][..., None].to(hidden.dtype)
                pooled = (dense.view(*hidden.shape[:2], -1) * mask).sum(dim=1) / mask.sum(dim=1)
                made.append(pooled.cpu())
    finally:
        handle.remove()
    return torch.cat(made)


def prove_features(read: Reading, sae: SAE, features: SparseFeatures) -> Verdict:
    """By the rule of twice the error, on a sample of texts; and all rows are there."""
    if features.shape != (len(read.ids), sae.d_sae) or set(features.status) != {"ok"}:
        return Verdict(f"wanted {len(read.ids)} rows of {sae.d_sae}; got {features.shape}, {features.status_counts()}")
    sample = read.sample().tolist()
    usual = usual_features(read, sae, sample)
    found = features[sample].to_scipy().toarray()
    worst = [0.0, 0.0]
    for at, row in enumerate(sample):
        true = _true_features(read.true_hidden(row), sae).cpu()
        for side, mine in enumerate((torch.from_numpy(found[at]), usual[at])):
            worst[side] = max(worst[side], _off_by(mine, true))
    return _twice(worst[0], worst[1])


def _true_features(hidden: Tensor, sae: SAE) -> Tensor:
    """Mean codes [M] of one text, all in float64."""
    top = torch.addmm(sae.b_enc.double(), hidden, sae.w_enc.double().T).topk(sae.k or 0, dim=1)
    dense = torch.zeros(len(hidden), sae.d_sae, dtype=torch.float64, device=hidden.device)
    return dense.scatter_(1, top.indices, top.values.relu()).mean(dim=0)
