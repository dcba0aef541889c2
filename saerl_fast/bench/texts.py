"""featurize on texts, a model and its SAE: beside its own forward pass, and beside the loops that people write.

saerl bench --only featurize_over_forward,featurize --texts problems.jsonl --text-field problem --model DIR --sae DIR

All sides pool the same tokens, so their rows are the same. Proof, of ours and theirs, on a sample of texts in float64:
a score may be off by |x| |w_j| times twice what hidden states of the usual way are off by, and by the gap of proof.py;
what lies within this of the k-th score may be kept or not. No side changes the thresholds of malloc.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saerl_fast.bench.activations import Folded, folded
from saerl_fast.bench.contest import Contest, Verdict
from saerl_fast.bench.encode import backend_of
from saerl_fast.bench.gpu_data import as_text, problem_lengths, random_ids, random_model, word_tokenizer
from saerl_fast.bench.proof import GAP, ROUNDING
from saerl_fast.errors import InputError
from saerl_fast.extract.batching import Batch
from saerl_fast.extract.capture import Capture
from saerl_fast.extract.hooks import block_output
from saerl_fast.extract.reader import Reader, make_reader
from saerl_fast.extract.run import Task
from saerl_fast.extract.settings import Request
from saerl_fast.extract.shard import read_tokens
from saerl_fast.featurizer import featurize, make_task
from saerl_fast.ops import CsrRows
from saerl_fast.sae import SAE

USUAL_BATCH = 8
"""Texts in a batch of the loops of others."""
PROVED_TEXTS = 24
TINY_LAYER, TINY_LONGEST = 1, 40


@dataclass(frozen=True)
class Work:
    """Texts, the model up to the block that is read, the whole model for the loops of others, and the SAE."""

    texts: Sequence[str]
    reader: Reader
    whole: Any
    sae: SAE
    encoder: Folded

    @property
    def call(self) -> dict[str, Any]:
        reader = self.reader
        return {"model": reader.model, "sae": self.sae, "tokenizer": reader.tokenizer, "hook": str(reader.hook)}

    @cached_property
    def sample(self) -> list[int]:
        """Texts to be proved, short and long."""
        order = np.argsort([len(text) for text in self.texts], kind="stable")
        places = np.linspace(0, len(order) - 1, min(PROVED_TEXTS, len(order))).astype(int)
        return sorted(int(row) for row in order[places])

    @cached_property
    def task(self) -> Task:
        request = Request(tokenizer=self.reader.tokenizer, hook=str(self.reader.hook))
        return make_task(self.texts, self.reader.model, self.sae, request)

    def tokenize(self) -> Iterator[list[Any]]:
        """The tokens of each shard."""
        for shard in range(self.task.job.shards):
            texts = [self.task.texts[row] for row in self.task.job.span(shard)]
            yield read_tokens(texts, self.reader, self.task.settings)[0]

    @cached_property
    def batches(self) -> list[Batch]:
        """Those that featurize runs."""
        settings, reader, made = self.task.settings, self.reader, []
        for tokens in self.tokenize():
            for rows in settings.layout.group([len(text) for text in tokens], settings.tokens_per_batch):
                chosen = [tokens[row] for row in rows]
                made.append(settings.layout.collate(chosen, reader.pad_id, settings.padding_side, reader.device))
        return made

    def forward(self) -> None:
        with Capture(self.reader.model, self.reader.hook) as capture:
            for batch in self.batches:
                capture(batch)

    def ours(self) -> CsrRows:
        found = featurize(self.texts, progress=False, **self.call)
        return CsrRows(*(torch.from_numpy(part) for part in (found.indptr, found.indices, found.values)))

    def hidden(self, texts: Sequence[str], model: Any) -> tuple[Tensor, Tensor]:
        """The usual way on one batch: the tokens that are pooled [B, T], and hidden states [B, T, D]."""
        batch = self.reader.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.task.settings.limit, return_tensors="pt",
            return_special_tokens_mask=True,
        )  # fmt: skip
        kept = batch.pop("special_tokens_mask") == 0
        hidden = model(**batch, output_hidden_states=True).hidden_states[self.reader.hook.layer + 1]
        return kept, hidden

    def dense_codes(self, hidden: Tensor) -> Tensor:
        """TopK over all latents, dense [B, T, M]."""
        w_enc, b_enc, b_dec, k = self.encoder
        scores = torch.relu((hidden - b_dec) @ w_enc.T + b_enc)
        values, indices = scores.topk(k, dim=-1)
        return torch.zeros_like(scores).scatter_(-1, indices, values)


def work(*, texts: int, file: str = "", text_field: str = "", model: str = "", sae: str = "") -> Work:
    """The first `texts` texts of a table, a model folder and an SAE folder; all made up where no file is given."""
    if not file:
        return made_up(texts)
    from transformers import AutoModel

    from saerl_fast.extract.inputs import read_table
    from saerl_fast.formats import load_sae

    rows = [row.get(text_field) or "" for row in read_table(file)[:texts]]
    if not all(isinstance(text, str) and text.strip() for text in rows):
        raise InputError(f"--texts {file}: field {text_field!r} must hold a text in each of the first {texts} rows")
    found = load_sae(sae).to(dtype=torch.float32)
    if found.input_norm != "none":
        raise InputError(f"--sae {sae} normalises its input ({found.input_norm}); the loops beside featurize do not")
    reader = make_reader(model, found, device="cpu", dtype=torch.float32)
    whole = AutoModel.from_pretrained(model, dtype=torch.float32).eval()
    return Work(rows, reader, whole, found, folded(found, sae))


def made_up(texts: int) -> Work:
    """Random texts, a random model and a random SAE, all small."""
    model = random_model("tiny", torch.device("cpu"))
    vocabulary, width = model.get_input_embeddings().num_embeddings, int(model.config.hidden_size)
    rows = [as_text(ids) for ids in random_ids(problem_lengths(texts, TINY_LONGEST), vocabulary)]
    # a turned basis and its opposite, so that half of the channels explain most of a row
    basis = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(13))).Q
    w_enc, bias = torch.cat([basis, -basis]), torch.linspace(0, 0.001, 2 * width)
    sae = SAE(w_enc, bias, w_enc, bias[:width].clone(), kind="topk", k=width // 2)
    reader = Reader(model, word_tokenizer(vocabulary), block_output(TINY_LAYER), "tiny")
    return Work(rows, reader, model, sae, folded(sae, "tiny"))


def featurize_over_forward(**where: Any) -> Contest:
    """featurize beside tokenizing and the forward pass alone, on the same batches, which are there already.

    over_forward: (featurize - tokenizing - forward) / forward, of medians.
    """
    run = work(**where)
    tokenizing: list[float] = []

    def tokenize_and_forward() -> None:
        start = time.perf_counter()
        for _ in run.tokenize():
            pass
        tokenizing.append(time.perf_counter() - start)
        run.forward()

    def over_forward(ours_ms: float, theirs_ms: float) -> dict[str, float]:
        forward_ms = theirs_ms - 1e3 * median(tokenizing)
        return {"over_forward": round((ours_ms - theirs_ms) / forward_ms, 3)}

    return Contest(
        ours=run.ours,
        baselines={"tokenizing and the forward alone": tokenize_and_forward},
        prove=lambda rows: prove(run, {"ours": rows}),
        derived=over_forward,
        memory=True,
        **_about(run),
    )


def featurize_over_loop(**where: Any) -> Contest:
    """featurize against the loop that people write today."""
    return _against("a Hugging Face loop, batch 8, dense TopK", usual_rows, work(**where))


def featurize_vs_interp_embed(**where: Any) -> Contest:
    """featurize against a loop written after interp_embed's."""
    return _against("a loop as interp_embed's, batch 8", interp_rows, work(**where))


def _against(name: str, loop: Callable[[Work, Sequence[str]], CsrRows], run: Work) -> Contest:
    few = [run.texts[row] for row in run.sample]
    return Contest(
        ours=run.ours,
        baselines={name: lambda: loop(run, run.texts)},
        prove=lambda rows: prove(run, {"ours": rows, "theirs": loop(run, few)}),
        **_about(run),
    )


def _about(run: Work) -> dict[str, Any]:
    encoder = backend_of("topk_encode", k=run.encoder.k, n_latents=run.sae.d_sae, width=run.sae.d_in)
    return {
        "backend": f"{encoder}, {backend_of('segment_pool', n_latents=run.sae.d_sae)}",
        "facts": {"tokens": sum(len(batch.kept) for batch in run.batches), "batches": len(run.batches)},
    }


@torch.inference_mode()
def usual_rows(run: Work, texts: Sequence[str]) -> CsrRows:
    """The loop of today: texts as they come, every hidden state, codes of all latents, their mean, sparse rows."""
    from scipy import sparse

    parts = []
    for start in range(0, len(texts), USUAL_BATCH):
        kept, hidden = run.hidden(texts[start : start + USUAL_BATCH], run.whole)
        codes, mask = run.dense_codes(hidden), kept[..., None].float()
        parts.append(sparse.csr_array(((codes * mask).sum(1) / mask.sum(1)).numpy()))
    return _as_rows(sparse.vstack(parts, format="csr"))


@torch.inference_mode()
def interp_rows(run: Work, texts: Sequence[str]) -> CsrRows:
    """interp_embed's way: the padded dense codes of a batch to CSR, all tokens kept so, and pooled at the end."""
    from scipy import sparse

    parts, masks = [], []
    for start in range(0, len(texts), USUAL_BATCH):
        kept, hidden = run.hidden(texts[start : start + USUAL_BATCH], run.whole)
        parts.append(sparse.csr_array(run.dense_codes(hidden).flatten(0, 1).numpy()))
        masks += list(kept.numpy())
    places = np.flatnonzero(np.concatenate(masks))
    lengths = np.array([mask.sum() for mask in masks])
    ends = np.concatenate([[0], np.cumsum(lengths)])
    tokens = sparse.vstack(parts, format="csr")
    weights = np.repeat(1 / lengths, lengths).astype(np.float32)
    return _as_rows(sparse.csr_array((weights, places, ends), shape=(len(masks), tokens.shape[0])) @ tokens)


def _as_rows(found: Any) -> CsrRows:
    found.sort_indices()
    return CsrRows(*(torch.from_numpy(part) for part in (found.indptr, found.indices, found.data)))


@torch.inference_mode()
def prove(run: Work, sides: Mapping[str, CsrRows]) -> Verdict:
    """Each side's rows of the sample against float64; a side has the rows of all texts, or of the sample alone."""
    true_model = copy.deepcopy(run.whole).double()
    off_by, truth = 0.0, []
    for row in run.sample:
        kept, usual = run.hidden([run.texts[row]], run.whole)
        x = run.hidden([run.texts[row]], true_model)[1][kept]
        error = torch.linalg.vector_norm(usual[kept] - x, dim=1) / torch.linalg.vector_norm(x, dim=1)
        off_by = max(off_by, float(error.max()))
        truth.append(x)
    doubtful = 0
    for at, (row, x) in enumerate(zip(run.sample, truth, strict=True)):
        low, high, doubts = _bounds(run, x, 2 * off_by)
        doubtful += doubts
        for name, rows in sides.items():
            if len(rows.indptr) - 1 not in (len(run.texts), len(run.sample)):
                return Verdict(f"wanted {len(run.texts)} rows; {name} has {len(rows.indptr) - 1}")
            place = row if len(rows.indptr) - 1 == len(run.texts) else at
            entries = slice(int(rows.indptr[place]), int(rows.indptr[place + 1]))
            found = torch.zeros_like(low).index_add_(0, rows.indices[entries].long(), rows.values[entries].double())
            if wrong := int(((found < low) | (found > high)).sum()):
                return Verdict(f"text {row}: {wrong} latents of {name} are not those of float64")
    kept_latents = run.encoder.k * sum(map(len, truth))
    return Verdict(facts={"usual_off_by": off_by, "in_doubt": round(doubtful / kept_latents, 6)})


def _bounds(run: Work, x: Tensor, off_by: float) -> tuple[Tensor, Tensor, int]:
    """What the means [M] of one text's codes may be at least and at most, and how many codes are in doubt.

    x: hidden states [T, D] in float64   off_by: how far those of a side may be off, relative to |x|
    """
    k = run.encoder.k
    w_enc, b_enc, b_dec = (part.double() for part in run.encoder[:3])
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    centred = x - b_dec
    reach = torch.linalg.vector_norm(w_enc, dim=1)
    slack = off_by * length * reach
    slack += GAP * (torch.linalg.vector_norm(centred, dim=1, keepdim=True) * reach + b_enc.abs())
    h = torch.addmm(b_enc, centred, w_enc.T)
    kth, most = h.topk(k, dim=1).values[:, -1:], slack.amax(dim=1, keepdim=True)
    possible, sure = h + slack >= kth - most, h - slack > kth + most
    low = torch.where(sure, h - slack, 0).clamp(min=0).mean(dim=0)
    high = torch.where(possible, h + slack, 0).clamp(min=0).mean(dim=0)
    rounding = (len(x) + 2) * ROUNDING
    return low * (1 - rounding), high * (1 + rounding), int((possible & ~sure & (h + slack > 0)).sum())
