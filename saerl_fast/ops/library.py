"""Operations that torch knows by name, so that torch.compile keeps them whole.

Only the encoder is worth it: it stands in the middle of a model's forward pass, and its result has a shape
that is known beforehand. No gradient is registered: torch raises when one is asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saerl_fast.kernels.input_norm import normalised
from saerl_fast.ops import check
from saerl_fast.ops.choice import Call, choose
from saerl_fast.ops.table import TABLE


@torch.library.custom_op(
    "saerl_fast::topk_encode",
    mutates_args=(),
    schema=(
        "(Tensor x, Tensor w_enc, Tensor b_enc, int k, Tensor? b_dec, Tensor? scale, Tensor? row_index,"
        " bool relu, str? backend, str norm='none') -> (Tensor, Tensor)"
    ),
)
def topk_encode_op(
    x: Tensor,
    w_enc: Tensor,
    b_enc: Tensor,
    k: int,
    b_dec: Tensor | None,
    scale: Tensor | None,
    row_index: Tensor | None,
    relu: bool,
    backend: str | None,
    norm: str = "none",
) -> tuple[Tensor, Tensor]:
    """`ops.topk_encode` behind the checks of shapes and types. The checks that read data are here."""
    float64 = torch.float64 in (x.dtype, w_enc.dtype)
    call = Call(x.device.type, float64, k, w_enc.shape[0], w_enc.shape[1], norm=norm != "none")
    body = TABLE["topk_encode"][choose(TABLE, "topk_encode", call, backend)]
    if not body.marks_bad_rows:
        check_row_index("topk_encode", row_index, x)
    if norm != "none" and not body.normalises:
        x, row_index, norm = rows_as_seen(x, row_index, norm), None, "none"
    rest = (norm,) if body.normalises else ()
    values, indices = body.run(x, w_enc, b_enc, k, b_dec, scale, row_index, relu, *rest)
    return values, indices


def rows_as_seen(x: Tensor, row_index: Tensor | None, norm: str) -> Tensor:
    """The rows that count, normalised: a copy, for the backends that take no norm."""
    return normalised(x if row_index is None else x[row_index], norm)  # type: ignore[arg-type]


@topk_encode_op.register_fake
def _(
    x: Tensor,
    w_enc: Tensor,
    b_enc: Tensor,
    k: int,
    b_dec: Tensor | None,
    scale: Tensor | None,
    row_index: Tensor | None,
    relu: bool,
    backend: str | None,
    norm: str = "none",
) -> tuple[Tensor, Tensor]:
    n_rows = x.shape[0] if row_index is None else row_index.shape[0]
    return x.new_empty(n_rows, k, dtype=torch.float32), x.new_empty(n_rows, k, dtype=torch.int32)


def check_row_index(op: str, row_index: Tensor | None, x: Tensor) -> None:
    """Every index names a row of x. Reads the data: on a GPU this waits for the device."""
    if row_index is not None:
        check.in_range(op, "row_index", row_index, x.shape[0], "rows of x")
