"""What a sparse autoencoder is here: weights, the rule that picks its features, and where it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, cast

import torch
from torch import Tensor

from saerl_fast import ops
from saerl_fast.errors import DtypeError, InputError, ShapeError
from saerl_fast.kernels.input_norm import InputNorm, normalised
from saerl_fast.ops import CsrRows, SpacedRows, TopKCodes
from saerl_fast.sae.rules import encode_rows, encode_rows_certified

Kind = Literal["topk", "abstopk", "jumprelu", "standard", "gated"]
KINDS: tuple[Kind, ...] = ("topk", "abstopk", "jumprelu", "standard", "gated")


@dataclass(frozen=True)
class SAE:
    """One sparse autoencoder, frozen.

    With x' = norm(x) - b_dec (the subtraction only where ``apply_b_dec``) and
    h = (x' w_enc^T + b_enc) * scale, scale = ||w_dec_j|| where ``rescale_by_decoder_norm`` else 1:

    ==========  ===================================================================
    topk        S = top-k(h), features max(h, 0) on S: selection comes before ReLU
    abstopk     S = top-k(|h|), features h on S, with their sign
    jumprelu    features h where h > threshold and h > 0
    standard    features max(h, 0)
    gated       features max(exp(r_mag) x' w_enc^T + b_mag, 0) where h > 0 (b_enc is the bias of the gate)
    ==========  ===================================================================

    w_enc [M, D] and w_dec [M, D], one row per latent; b_enc [M]; b_dec [D]; threshold [M] (jumprelu);
    r_mag [M], b_mag [M] (gated). A ``transcoder`` writes at another place than it reads: w_dec [M, D_out],
    b_dec [D_out], which is never subtracted from x, and w_skip [D_out, D] where it has a linear path beside.
    All floating tensors share one dtype and device. The formulas are those of sae-lens 6 inference.

    Raises ShapeError, DtypeError or InputError when the parts do not fit together.
    """

    w_enc: Tensor
    b_enc: Tensor
    w_dec: Tensor
    b_dec: Tensor
    kind: Kind
    k: int | None = None
    threshold: Tensor | None = None
    apply_b_dec: bool = True
    rescale_by_decoder_norm: bool = False
    input_norm: InputNorm = "none"
    flatten_heads: bool = False
    r_mag: Tensor | None = None
    b_mag: Tensor | None = None
    transcoder: bool = False
    w_skip: Tensor | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_shapes(self)
        _check_rule(self)

    @property
    def d_in(self) -> int:
        """Width D of the activations it reads."""
        return int(self.w_enc.shape[1])

    @property
    def d_sae(self) -> int:
        """Number M of latents."""
        return int(self.w_enc.shape[0])

    @property
    def d_out(self) -> int:
        """Width of what it reconstructs: D, but for a transcoder."""
        return int(self.w_dec.shape[1])

    @property
    def device(self) -> torch.device:
        return self.w_enc.device

    @property
    def dtype(self) -> torch.dtype:
        return self.w_enc.dtype

    @property
    def hook_name(self) -> str | None:
        """The hook it was trained on, Hugging Face module path preferred."""
        return self.metadata.get("hf_hook_name") or self.metadata.get("hook_name")

    @property
    def model_name(self) -> str | None:
        return self.metadata.get("model_name")

    @property
    def context_size(self) -> int | None:
        size = self.metadata.get("context_size")
        return int(size) if size else None

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SAE:
        """The same SAE on another device or in another dtype."""
        moved = {
            name: None if tensor is None else tensor.to(device=device, dtype=dtype)
            for name, tensor in self._tensors().items()
        }
        return replace(self, **moved)  # type: ignore[arg-type]

    def encode(self, x: Tensor, row_index: Tensor | None = None) -> TopKCodes | CsrRows:
        """Sparse features of the rows of x.

        x [R, D] (or [R, heads, D / heads] for a hook_z SAE), any float dtype; rounded to a narrower SAE's.
        row_index int64 [N]: encode only these rows. On a GPU no copy of them is made, whatever the input norm.
        Returns TopKCodes (topk, abstopk) or CsrRows (jumprelu, standard, gated).
        """
        return cast("TopKCodes | CsrRows", encode_rows(self, self._as_rows(x), row_index))

    def encode_certified(self, x: Tensor, row_index: Tensor | None = None) -> tuple[TopKCodes, Tensor]:
        """`encode` of a topk SAE exactly as float64 has it, and which rows [N] bool a screen has proved.

        `ops.topk_encode_certified` says what that means. Raises InputError for another kind.
        """
        return encode_rows_certified(self, self._as_rows(x), row_index)

    def encode_spaced(
        self, x: Tensor, row_index: Tensor | None = None, entries_per_row: int = ops.ENTRIES_PER_ROW
    ) -> TopKCodes | SpacedRows:
        """`encode` without waiting for the device, for `ops.segment_pool_spaced`.

        Where a row keeps any number of features there is room for ``entries_per_row`` of them on average; rows for
        which none was left are marked (`ops.threshold_encode_spaced`). A gated SAE leaves zeros among its entries.
        """
        codes = encode_rows(self, self._as_rows(x), row_index, entries_per_row)
        return SpacedRows.of(codes) if isinstance(codes, CsrRows) else codes

    def decode(self, codes: TopKCodes | CsrRows) -> Tensor:
        """The reconstruction [N, D_out] in the (normalised) input space of the SAE.

        For a transcoder it is what the latents say of the output; ``w_skip`` x comes beside it.
        """
        scale = self.latent_scale
        if scale is not None:
            codes = codes._replace(values=codes.values / scale.float()[codes.indices.long()])
        return ops.decode(codes, self.w_dec, self.b_dec)

    def weights_hash(self) -> str:
        """SHA-256 over kind, settings and every weight; two SAEs with one hash give the same features."""
        digest = hashlib.sha256(
            repr((self.kind, self.k, self.apply_b_dec, self.rescale_by_decoder_norm, self.input_norm)).encode()
        )
        for name, tensor in self._tensors().items():
            if tensor is not None:
                raw = tensor.detach().cpu().contiguous()
                digest.update(f"{name} {tuple(raw.shape)} {raw.dtype}".encode())
                digest.update(raw.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _tensors(self) -> dict[str, Tensor | None]:
        names = ("w_enc", "b_enc", "w_dec", "b_dec", "threshold", "r_mag", "b_mag", "w_skip")
        return {name: getattr(self, name) for name in names}

    @cached_property
    def latent_scale(self) -> Tensor | None:
        """The factor [M] on each pre-activation: the decoder norms, or None for one everywhere."""
        if not self.rescale_by_decoder_norm:
            return None
        norms: Tensor = torch.linalg.vector_norm(self.w_dec, dim=-1)
        return norms

    def prepare(self, x: Tensor) -> Tensor:
        """x as the encoder sees it before b_dec: heads flattened, SAE dtype, then normalised in float32; [R, D]."""
        return normalised(self._as_rows(x).to(self.dtype), self.input_norm)

    def _as_rows(self, x: Tensor) -> Tensor:
        """x with heads flattened [R, D], rounded to the SAE's dtype where that is the narrower one."""
        if self.flatten_heads and x.ndim >= 3:
            x = x.flatten(-2)
        if x.ndim != 2 or x.shape[-1] != self.d_in:
            raise ShapeError(
                f"SAE.encode: x must be [rows, {self.d_in}]; got {list(x.shape)}. "
                "Does this SAE belong to this model and layer?"
            )
        # where it is exact, the kernels do it on the way
        return x if torch.promote_types(x.dtype, self.dtype) == self.dtype else x.to(self.dtype)


def _check_shapes(sae: SAE) -> None:
    if sae.w_enc.ndim != 2 or 0 in sae.w_enc.shape:
        raise ShapeError(f"SAE: w_enc must be [d_sae, d_in], both positive; got {list(sae.w_enc.shape)}")
    latents, width = sae.w_enc.shape
    if sae.w_dec.ndim != 2:
        raise ShapeError(f"SAE: w_dec must be [d_sae, d_out]; got {list(sae.w_dec.shape)}")
    width_out = sae.w_dec.shape[1] if sae.transcoder else width
    wanted: dict[str, tuple[int, ...]] = {"b_enc": (latents,), "w_dec": (latents, width_out), "b_dec": (width_out,)}
    wanted |= {name: (latents,) for name in ("threshold", "r_mag", "b_mag") if getattr(sae, name) is not None}
    if sae.w_skip is not None:
        wanted["w_skip"] = (width_out, width)
    for name, shape in wanted.items():
        got = tuple(getattr(sae, name).shape)
        if got != shape:
            raise ShapeError(f"SAE: {name} must be {list(shape)} to match w_enc {[latents, width]}; got {list(got)}")
    for name, tensor in sae._tensors().items():
        if tensor is not None and (tensor.dtype != sae.w_enc.dtype or not tensor.is_floating_point()):
            raise DtypeError(f"SAE: {name} must be {sae.w_enc.dtype} like w_enc; got {tensor.dtype}")


def _check_rule(sae: SAE) -> None:
    if sae.kind not in KINDS:
        raise InputError(f"SAE: kind must be one of {', '.join(KINDS)}; got {sae.kind!r}")
    if sae.kind in ("topk", "abstopk") and (sae.k is None or not 1 <= sae.k <= sae.d_sae):
        raise InputError(f"SAE: a {sae.kind} SAE needs 1 <= k <= d_sae = {sae.d_sae}; got k = {sae.k}")
    if sae.kind == "jumprelu" and sae.threshold is None:
        raise InputError("SAE: a jumprelu SAE needs a threshold per latent; got none")
    if sae.kind == "gated" and (sae.r_mag is None or sae.b_mag is None):
        raise InputError("SAE: a gated SAE needs r_mag and b_mag, one number per latent each; got none")
    if sae.rescale_by_decoder_norm and sae.kind not in ("topk", "abstopk"):
        raise InputError(f"SAE: rescale_by_decoder_norm goes with topk and abstopk; got a {sae.kind} SAE")
    if sae.transcoder and sae.apply_b_dec:
        raise InputError(
            "SAE: b_dec of a transcoder lies where it writes and is not subtracted; give apply_b_dec=False"
        )
    if sae.w_skip is not None and not sae.transcoder:
        raise InputError("SAE: w_skip goes with a transcoder; give transcoder=True")
    if sae.input_norm not in ("none", "layer_norm", "constant_norm_rescale"):
        raise InputError(f"SAE: input_norm must be none, layer_norm or constant_norm_rescale; got {sae.input_norm!r}")
