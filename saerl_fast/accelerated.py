"""Code that is written on sae-lens, made faster in place: ``sae = saerl_fast.accelerate(sae)``."""

from __future__ import annotations

import copy
import logging
import types
from typing import Any

import torch
from torch import Tensor

from saerl_fast.codes import CsrRows, TopKCodes
from saerl_fast.errors import InputError, MissingDependency
from saerl_fast.formats.registry import from_sae_lens
from saerl_fast.sae import SAE

logger = logging.getLogger(__name__)

DENSE_PAYS = ("topk", "abstopk")
"""Kinds whose dense encode goes through ours: for the others the dense array itself is most of the work."""

SAMPLED = 1024
"""Numbers of each weight that are compared at every call."""


class _Accelerated:
    """The encode of one sae-lens object: ours where it gives what theirs would, theirs everywhere else."""

    def __init__(self, theirs: Any) -> None:
        self.theirs = theirs
        self.plain = theirs.encode
        self._ours: SAE | None = None
        self._seen: tuple[Any, ...] = ()
        self._sampled: list[Tensor] = []
        self._said: set[str] = set()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Accelerated:
        """For a copy of the object it belongs to: that copy's weights, which may go their own way."""
        copied = _Accelerated(copy.deepcopy(self.theirs, memo))
        copied.plain = copy.deepcopy(self.plain, memo)
        return copied

    def ours(self) -> SAE:
        """Our view of their weights and settings, made again whenever one of them has changed."""
        settings, sample = self._settings(), self._sample()
        if self._ours is None or settings != self._seen or not all(map(torch.equal, sample, self._sampled)):
            self._ours, self._seen, self._sampled = from_sae_lens(self.theirs), settings, sample
        return self._ours

    def _settings(self) -> tuple[Any, ...]:
        config = self.theirs.cfg
        names = ("normalize_activations", "apply_b_dec_to_input", "k", "rescale_acts_by_decoder_norm")
        tensors = self.theirs.state_dict(keep_vars=True).values()
        return (
            *(getattr(config, name, None) for name in names),
            *((tensor.data_ptr(), tensor._version, tensor.dtype, tensor.device) for tensor in tensors),
        )

    def _sample(self) -> list[Tensor]:
        """Some numbers of every weight: a change through .data, as sae-lens folds, leaves no other trace."""
        flat = [tensor.detach().reshape(-1) for tensor in self.theirs.state_dict().values()]
        return [tensor[:: max(1, len(tensor) // SAMPLED)].clone() for tensor in flat]

    def encode(self, x: Tensor) -> Tensor:
        """Dense features [..., d_sae] in the SAE's dtype, as sae-lens returns them."""
        reason = self._reason_for_theirs(x)
        if reason is not None:
            if reason not in self._said:
                self._said.add(reason)
                logger.info("accelerate: encode of sae-lens runs, since %s", reason)
            found: Tensor = self.plain(x)
            return found
        rows, shape = self._rows(x)
        codes = self.ours().encode(rows)
        dense = torch.zeros(len(rows), self.theirs.cfg.d_sae, dtype=self.theirs.dtype, device=rows.device)
        if isinstance(codes, TopKCodes):
            dense.scatter_(1, codes.indices.long(), codes.values.to(dense.dtype))
        else:
            counts = codes.indptr.diff()
            row = torch.arange(len(counts), device=dense.device).repeat_interleave(counts)
            dense[row, codes.indices.long()] = codes.values.to(dense.dtype)
        kept: Tensor = self.theirs.hook_sae_acts_post(dense.view(*shape, dense.shape[1]))
        return kept

    def encode_sparse(self, x: Tensor) -> TopKCodes | CsrRows:
        """Sparse features of the rows of x [..., d_in], all leading dimensions flattened; no dense array, no hooks."""
        with torch.no_grad():
            return self.ours().encode(self._rows(x)[0])

    def _rows(self, x: Tensor) -> tuple[Tensor, torch.Size]:
        """x as rows, and the leading dimensions that came off."""
        inner = 2 if getattr(self.theirs, "hook_z_reshaping_mode", False) else 1
        return x.reshape(x.shape[:-inner].numel(), *x.shape[-inner:]), x.shape[:-inner]

    def _reason_for_theirs(self, x: Tensor) -> str | None:
        """Why their own encode must run: what it does beside returning features, we would not do."""
        theirs = self.theirs
        if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in theirs.parameters())):
            return "gradients are recorded (torch.no_grad() or inference_mode makes it fast)"
        if theirs.training:
            return "the SAE is in training mode (call .eval())"
        for name in ("hook_sae_input", "hook_sae_acts_pre"):
            hook = getattr(theirs, name)  # an nn.Identity while sae-lens has its hooks turned off
            if any(getattr(hook, kind, None) for kind in ("fwd_hooks", "bwd_hooks", "_forward_hooks")):
                return f"{name} has hooks, and no such array is made here"
        if theirs.cfg.normalize_activations in ("layer_norm", "constant_norm_rescale"):
            return f"decode needs what encode notes for normalize_activations {theirs.cfg.normalize_activations!r}"
        if self.ours().kind not in DENSE_PAYS:
            return f"a dense encode of kind {self.ours().kind} is no faster here; encode_sparse is"
        if getattr(theirs, "hook_z_reshaping_mode", False):
            return "decode needs the shape of the heads, which encode notes"
        return None


def accelerate(sae: Any) -> Any:
    """The same sae-lens object, its ``encode`` faster and with a sparse one beside it: ``encode_sparse``.

    sae: an inference SAE of sae-lens (not a training one). ``encode(x)`` keeps its contract: dense [..., d_sae] in
        the SAE's dtype; TopK and AbsTopK run here wherever nobody would see the difference, and sae-lens's own
        encode runs where somebody would (gradients, training mode, hooks on what is not made here, notes for
        decode, kinds without a gain), with one line of log. ``encode_sparse(x)`` gives TopKCodes or CsrRows of
        the rows of x, for every kind, without a dense array.
    Weights and settings may change afterwards, and the change is seen (by version, place, and a sample of each weight:
    one number written through ``.data`` may escape it). The encoder is held once more, transposed.

    Raises InputError for what is no inference SAE of sae-lens, FormatError for an architecture that is not token-wise.
    """
    try:
        from sae_lens import SAE as SaeLensSAE
    except ImportError as error:
        raise MissingDependency("accelerate works on an SAE of sae-lens: pip install 'saerl-fast[sae-lens]'") from error
    if not isinstance(sae, SaeLensSAE):
        raise InputError(
            f"accelerate needs an inference SAE of sae-lens; got {type(sae).__name__}. "
            "An SAE of saerl_fast is fast as it is"
        )
    if getattr(sae, "encode_sparse", None) is not None:
        return sae
    faster = _Accelerated(sae)
    faster.ours()
    # set past nn.Module, which would look for parameters in them; methods find their state by the object they are
    # called on, so that a deep copy has its own
    for name, value in (
        ("_saerl_fast", faster),
        ("encode", types.MethodType(_encode, sae)),
        ("encode_sparse", types.MethodType(_encode_sparse, sae)),
    ):
        object.__setattr__(sae, name, value)
    return sae


def _encode(sae: Any, x: Tensor) -> Tensor:
    faster: _Accelerated = sae._saerl_fast
    return faster.encode(x)


def _encode_sparse(sae: Any, x: Tensor) -> TopKCodes | CsrRows:
    faster: _Accelerated = sae._saerl_fast
    return faster.encode_sparse(x)
