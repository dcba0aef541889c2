"""Encoding: the select alone; TopK against torch, its own matrix product and sae-lens; by threshold."""

from __future__ import annotations

from typing import Any

import torch

from saerl_fast import ops
from saerl_fast.bench import proof
from saerl_fast.bench.activations import Reading, reading
from saerl_fast.bench.contest import Contest
from saerl_fast.bench.data import Encoder, encoder
from saerl_fast.errors import BackendUnavailable, MissingDependency
from saerl_fast.kernels import native
from saerl_fast.ops import CsrRows, TopKCodes
from saerl_fast.ops.choice import Call, pick
from saerl_fast.ops.table import TABLE
from saerl_fast.sae import SAE

SELECT_WIDTH = 256
"""Width of the activations behind the scores of `select`: it changes the cost of making them only."""

GEMM_BLOCK = 4096
"""Latents in a block of the matrix product alone: a product that never leaves the cache can beat one whole one."""


def backend_of(op: str, want: str | None = None, **sizes: Any) -> str:
    """The backend that runs `op` on the CPU at these sizes; raises BackendUnavailable where the one wanted cannot."""
    return pick(TABLE, op, Call("cpu", **sizes), want)[0]


def select(rows: int, latents: int, k: int) -> Contest:
    """The k largest of given scores [rows, latents], at one thread."""
    if reason := native.missing():
        raise BackendUnavailable(f"select: {reason}")
    inputs = encoder(rows, min(SELECT_WIDTH, latents), latents)
    scores = torch.addmm(inputs.b_enc, inputs.x - inputs.b_dec, inputs.w_enc.T)
    return Contest(
        ours=lambda: native.topk_select(scores, k),
        baselines={"torch.topk": lambda: scores.topk(k, dim=1)},
        prove=lambda result: proof.selected(result, scores, k),
        backend="cpu",
        threads=1,
    )


def read_by(
    *,
    rows: int = 0,
    width: int = 0,
    latents: int = 0,
    k: int = 0,
    activations: str = "",
    sae: str = "",
    massive: int = 0,
) -> Reading:
    """Made-up inputs of a shape, or those of a file of activations and an SAE folder."""
    if activations:
        return reading(activations, sae, massive)
    return Reading(encoder(rows, width, latents), k)


def sizes_of(inputs: Encoder) -> dict[str, Any]:
    return {"n_latents": len(inputs.w_enc), "width": inputs.x.shape[1]}


def facts_of(inputs: Encoder, k: int) -> dict[str, int]:
    return {"rows": len(inputs.x), "width": inputs.x.shape[1], "latents": len(inputs.w_enc), "k": k}


def encode(**where: Any) -> Contest:
    """The default backend against three torch calls."""
    inputs, k = read_by(**where)
    w, bias = inputs.w_enc.T, torch.addmv(inputs.b_enc, inputs.w_enc, inputs.b_dec, alpha=-1)
    return Contest(
        ours=lambda: _encode(inputs, k, None),
        # b_dec is folded into the bias beforehand: one pass less than ours
        baselines={"torch addmm + relu + topk": lambda: torch.addmm(bias, inputs.x, w).relu_().topk(k, dim=1)},
        prove=lambda codes: proof.encoded(codes, inputs, k),
        backend=backend_of("topk_encode", k=k, **sizes_of(inputs)),
        facts=facts_of(inputs, k),
    )


def encode_over_gemm(**where: Any) -> Contest:
    """Backend cpu_int8, which needs no float32 product, against that product alone."""
    return _over_gemm("cpu_int8", *read_by(**where))


def encode_fp32_over_gemm(**where: Any) -> Contest:
    """Backend cpu against the float32 matrix product alone."""
    return _over_gemm("cpu", *read_by(**where))


def _over_gemm(want: str, inputs: Encoder, k: int) -> Contest:
    """A backend against the float32 matrix product into memory that is already there."""
    rows, latents = len(inputs.x), len(inputs.w_enc)
    backend = backend_of("topk_encode", want, k=k, **sizes_of(inputs))
    dense, buffer = torch.empty(rows, latents), torch.empty(rows * min(GEMM_BLOCK, latents))

    def in_blocks() -> None:
        for w in torch.split(inputs.w_enc, GEMM_BLOCK):
            torch.mm(inputs.x, w.T, out=buffer[: rows * len(w)].view(rows, len(w)))

    return Contest(
        ours=lambda: _encode(inputs, k, backend),
        baselines={
            "torch.mm": lambda: torch.mm(inputs.x, inputs.w_enc.T, out=dense),
            "torch.mm in blocks": in_blocks,
        },
        prove=lambda codes: proof.encoded(codes, inputs, k),
        backend=backend,
        facts=facts_of(inputs, k),
    )


def _encode(inputs: Encoder, k: int, backend: str | None) -> TopKCodes:
    return ops.topk_encode(inputs.x, inputs.w_enc, inputs.b_enc, k, b_dec=inputs.b_dec, backend=backend)


def encode_vs_sae_lens(**where: Any) -> Contest:
    """SAE.encode against TopKSAE.encode with the same weights, with the peak memory of both."""
    inputs, k = read_by(**where)
    ours, theirs = SAE(inputs.w_enc, inputs.b_enc, inputs.w_enc, inputs.b_dec, kind="topk", k=k), of_sae_lens(inputs, k)
    return Contest(
        ours=lambda: ours.encode(inputs.x),
        baselines={"sae_lens TopKSAE.encode": lambda: _without_gradients(theirs, inputs.x)},
        prove=lambda codes: proof.encoded(codes, inputs, k),
        backend=backend_of("topk_encode", k=k, **sizes_of(inputs)),
        facts=facts_of(inputs, k),
        memory=True,
    )


def accelerate(**where: Any) -> Contest:
    """encode of an accelerated TopKSAE, dense as sae-lens returns it, against the same object's without it."""
    from saerl_fast.accelerated import accelerate

    inputs, k = read_by(**where)
    ours, theirs = accelerate(of_sae_lens(inputs, k)), of_sae_lens(inputs, k)
    return Contest(
        ours=lambda: _without_gradients(ours, inputs.x),
        baselines={"sae_lens TopKSAE.encode": lambda: _without_gradients(theirs, inputs.x)},
        prove=lambda dense: proof.densely_encoded(dense, inputs, k),
        backend=backend_of("topk_encode", k=k, **sizes_of(inputs)),
        facts=facts_of(inputs, k),
    )


def of_sae_lens(inputs: Encoder, k: int) -> Any:
    """A TopKSAE of sae-lens with these weights, in eval mode."""
    try:
        from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
    except ImportError as error:
        raise MissingDependency(
            f"sae-lens is needed for this row: {error}. pip install 'saerl-fast[sae-lens]'"
        ) from error
    latents, width = inputs.w_enc.shape
    made = TopKSAE(
        TopKSAEConfig(d_in=width, d_sae=latents, k=k, apply_b_dec_to_input=True, dtype="float32", device="cpu")
    )
    weights = {"W_enc": inputs.w_enc.T, "b_enc": inputs.b_enc, "W_dec": inputs.w_enc, "b_dec": inputs.b_dec}
    made.load_state_dict(weights)
    return made.eval()


def _without_gradients(sae: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = sae.encode(x)
    return found


def threshold_encode(rows: int, width: int, latents: int, l0: int) -> Contest:
    """One threshold for all, set so that about l0 latents of a row pass it; to CSR rows."""
    inputs = encoder(rows, width, latents)
    w, bias = inputs.w_enc.T, torch.addmv(inputs.b_enc, inputs.w_enc, inputs.b_dec, alpha=-1)
    sample = torch.addmm(bias, inputs.x[:64], w)
    theta = float(sample.flatten().topk(l0 * len(sample)).values[-1])

    def dense() -> CsrRows:
        h = torch.addmm(bias, inputs.x, w)
        keep = h > theta
        row, indices = keep.nonzero(as_tuple=True)
        indptr = torch.nn.functional.pad(torch.bincount(row, minlength=rows).cumsum(0), (1, 0))
        return CsrRows(indptr, indices.int(), h[row, indices])

    return Contest(
        ours=lambda: ops.threshold_encode(inputs.x, inputs.w_enc, inputs.b_enc, theta, b_dec=inputs.b_dec),
        baselines={"torch addmm + threshold + nonzero to CSR": dense},
        prove=lambda codes: proof.thresholded(codes, inputs, theta),
        backend=backend_of("threshold_encode", n_latents=latents, width=width, threshold=theta),
        facts={"theta": theta, "mean_l0": len(dense().indices) / rows},
    )
