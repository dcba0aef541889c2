"""Encoding on a device: the select alone, TopK against its matrix product and against torch, by threshold."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from saerl_fast import ops
from saerl_fast.bench import proof
from saerl_fast.bench.clock import Ring
from saerl_fast.bench.contest import Contest, Verdict
from saerl_fast.bench.data import Encoder, encoder
from saerl_fast.bench.gpu_data import centred_encoder
from saerl_fast.errors import BackendUnavailable
from saerl_fast.kernels import native
from saerl_fast.ops import CsrRows, TopKCodes
from saerl_fast.ops.choice import Call, pick, refusal
from saerl_fast.ops.table import TABLE

SCREENED = "triton_bf16"
"""The backend for published float32 weights; it has to be asked for."""
FUSED = "triton"
"""The backend whose product leaves group maxima; it comes behind `cuda`, and gets rows of its own beside it."""
PROVED_ROWS = 256
"""Rows of each result that are held against float64."""


def half_of(device: torch.device) -> torch.dtype:
    """The type a model has there."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def backend_on(device: torch.device, op: str, *, k: int = 0, latents: int = 0, width: int = 0) -> str:
    """The backend that runs `op` there. Raises BackendUnavailable where only the reference does, on CUDA."""
    name, passed = pick(TABLE, op, Call(device.type, k=k, n_latents=latents, width=width), None)
    if name == "reference" and device.type == "cuda":
        raise BackendUnavailable(f"{op}: only the reference runs on this device. {'; '.join(passed)}")
    return name


def asked_for(name: str, device: torch.device, op: str, k: int, latents: int, width: int) -> str | None:
    """The backend `name`; on a CPU none, where it would be interpreted: minutes for what a dry run is to show.

    Raises BackendUnavailable where it cannot run.
    """
    if device.type != "cuda":
        return None
    call = Call(device.type, k=k, n_latents=latents, width=width)
    if reason := refusal(TABLE, op, name, call):
        raise BackendUnavailable(f"{op}: {name}: {reason}")
    return name


def sample_of(rows: int, device: torch.device) -> Tensor:
    """Rows to be proved, ascending."""
    generator = torch.Generator().manual_seed(9)
    chosen = torch.randperm(rows, generator=generator)[:PROVED_ROWS].sort().values
    return chosen.to(device)


def encoded_rows(codes: TopKCodes, inputs: Encoder, k: int) -> Verdict:
    """All rows have the right form; a sample of them is right in float64, by the gap rule."""
    if codes.values.shape != (len(inputs.x), k) or codes.indices.shape != (len(inputs.x), k):
        return Verdict(f"wanted values and indices [{len(inputs.x)}, {k}]; got {list(codes.values.shape)}")
    rows = sample_of(len(inputs.x), inputs.x.device)
    return proof.encoded(TopKCodes(codes.values[rows], codes.indices[rows]), inputs._replace(x=inputs.x[rows]), k)


def encode(rows: int, width: int, latents: int, k: int, device: torch.device) -> Contest:
    """The default backend against three torch calls."""
    return _against_torch(centred_encoder(rows, width, latents, device, half_of(device)), k)


def encode_triton(rows: int, width: int, latents: int, k: int, device: torch.device) -> Contest:
    """Backend `triton` against three torch calls."""
    backend = asked_for(FUSED, device, "topk_encode", k, latents, width)
    return _against_torch(centred_encoder(rows, width, latents, device, half_of(device)), k, backend)


def encode_over_gemm(rows: int, width: int, latents: int, k: int, device: torch.device) -> Contest:
    """The default backend against its matrix product alone."""
    return _over_gemm(centred_encoder(rows, width, latents, device, half_of(device)), k)


def encode_triton_over_gemm(rows: int, width: int, latents: int, k: int, device: torch.device) -> Contest:
    """Backend `triton` against the product of cuBLAS alone."""
    backend = asked_for(FUSED, device, "topk_encode", k, latents, width)
    return _over_gemm(centred_encoder(rows, width, latents, device, half_of(device)), k, backend=backend)


def encode_published(rows: int, width: int, latents: int, k: int, device: torch.device) -> Contest:
    """Exact for an SAE published in float32, on activations of a 16-bit model, against the 16-bit product alone."""
    half = half_of(device)
    screened = asked_for(SCREENED, device, "topk_encode", k, latents, width)
    made = centred_encoder(rows, width, latents, device, torch.float32)
    return _over_gemm(made._replace(x=made.x.to(half)), k, half, screened)


def _against_torch(inputs: Encoder, k: int, backend: str | None = None) -> Contest:
    ring, w = Ring(inputs.x), inputs.w_enc.T
    return Contest(
        ours=lambda: ops.topk_encode(ring.next(), inputs.w_enc, inputs.b_enc, k, backend=backend),
        baselines={"torch addmm + relu + topk": lambda: torch.addmm(inputs.b_enc, ring.next(), w).relu_().topk(k)},
        prove=lambda codes: encoded_rows(codes, inputs, k),
        backend=backend or _topk_backend(inputs, k),
        memory=True,
    )


def _over_gemm(inputs: Encoder, k: int, product: torch.dtype | None = None, backend: str | None = None) -> Contest:
    ring, w = Ring(inputs.x), inputs.w_enc.to(product or inputs.w_enc.dtype)
    dense = torch.empty(len(inputs.x), len(w), dtype=w.dtype, device=w.device)
    return Contest(
        ours=lambda: ops.topk_encode(ring.next(), inputs.w_enc, inputs.b_enc, k, backend=backend),
        baselines={"torch.mm": lambda: torch.mm(ring.next(), w.T, out=dense)},
        prove=lambda codes: encoded_rows(codes, inputs, k),
        backend=backend or _topk_backend(inputs, k),
        memory=True,
    )


def _topk_backend(inputs: Encoder, k: int) -> str:
    latents, width = inputs.w_enc.shape
    return backend_on(inputs.x.device, "topk_encode", k=k, latents=latents, width=width)


def select(rows: int, latents: int, k: int, device: torch.device) -> Contest:
    """The k largest of float32 scores [rows, latents] that are there already."""
    made = encoder(rows, min(256, latents), latents)
    scores = torch.addmm(made.b_enc, made.x - made.b_dec, made.w_enc.T).to(device)
    ring = Ring(scores)
    if reason := native.missing():
        raise BackendUnavailable(f"select: {reason}")
    if device.type == "cuda" and not native.module().cuda:
        raise BackendUnavailable(f"select: built without CUDA: {native.build_record().get('cuda_reason')}")

    def ours() -> tuple[Tensor, Tensor]:
        return _select_on_device(ring.next(), k) if device.type == "cuda" else native.topk_select(ring.next(), k)

    return Contest(
        ours=ours,
        baselines={"torch.topk": lambda: ring.next().topk(k, dim=1)},
        prove=lambda result: proof.selected(result, scores, k),
        backend=device.type,
    )


def _select_on_device(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values = torch.empty(len(scores), k, dtype=torch.float32, device=scores.device)
    indices = torch.empty(len(scores), k, dtype=torch.int32, device=scores.device)
    native.module().topk_select_cuda(
        native.address(scores), *scores.shape, scores.stride(0), native.address(None), native.address(None), k, False,
        native.address(values), native.address(indices), scores.device.index,
        torch.cuda.current_stream(scores.device).cuda_stream,
    )  # fmt: skip
    return values, indices


def threshold_encode_triton(rows: int, width: int, latents: int, l0: int, device: torch.device) -> Contest:
    """The same on backend `triton`."""
    backend = asked_for(FUSED, device, "threshold_encode", 0, latents, width)
    return threshold_encode(rows, width, latents, l0, device, backend)


def threshold_encode(
    rows: int, width: int, latents: int, l0: int, device: torch.device, backend: str | None = None
) -> Contest:
    """One threshold for all, set so that about l0 latents of a row pass it; to CSR rows."""
    inputs = centred_encoder(rows, width, latents, device, half_of(device))
    ring, w = Ring(inputs.x), inputs.w_enc.T
    sample = torch.addmm(inputs.b_enc, inputs.x[:64], w).float()
    theta = float(sample.flatten().topk(l0 * len(sample)).values[-1])

    def dense() -> CsrRows:
        h = torch.addmm(inputs.b_enc, ring.next(), w)
        keep = h > theta
        row, indices = keep.nonzero(as_tuple=True)
        indptr = functional.pad(torch.bincount(row, minlength=rows).cumsum(0), (1, 0))
        return CsrRows(indptr, indices.int(), h[row, indices])

    return Contest(
        ours=lambda: ops.threshold_encode(ring.next(), inputs.w_enc, inputs.b_enc, theta, backend=backend),
        baselines={"torch addmm + threshold + nonzero to CSR": dense},
        prove=lambda codes: _thresholded_rows(codes, inputs, theta),
        backend=backend or backend_on(device, "threshold_encode", latents=latents, width=width),
        facts={"theta": theta, "mean_l0": len(dense().indices) / rows},
    )


def _thresholded_rows(codes: CsrRows, inputs: Encoder, theta: float) -> Verdict:
    if len(codes.indptr) != len(inputs.x) + 1 or int(codes.indptr[-1]) != len(codes.indices):
        return Verdict("indptr does not fit the rows")
    rows = sample_of(len(inputs.x), inputs.x.device)
    lengths = codes.indptr.diff()[rows]
    if bool((lengths < 0).any()):
        return Verdict("indptr falls")
    indptr = functional.pad(lengths.cumsum(0), (1, 0))
    at = torch.repeat_interleave(codes.indptr[rows] - indptr[:-1], lengths) + torch.arange(
        int(indptr[-1]), device=rows.device
    )
    sample = CsrRows(indptr.cpu(), codes.indices[at].cpu(), codes.values[at].cpu())
    x, w, b, b_dec = (part.cpu() for part in inputs._replace(x=inputs.x[rows]))
    return proof.thresholded(sample, Encoder(x, w, b, b_dec), theta)
