"""The compiled decode: instruction sets, threads, and gradients held against the reference in float64."""

import pytest
import torch

from saerl_fast import ops
from saerl_fast.errors import BackendUnavailable
from saerl_fast.kernels import decode_cpu, native
from saerl_fast.ops import CsrRows, TopKCodes
from saerl_fast.ops.reference import as_csr
from tests.op_table import OPERATIONS, csr_rows, dense, grid, topk_codes

if native.missing():
    pytest.skip(native.missing(), allow_module_level=True)

SETS = native.module().instruction_sets()
CODES = {
    "topk": topk_codes(40, 7, 30),
    "one": topk_codes(5, 1, 30),
    "csr": csr_rows(40, 30),
    "empty": csr_rows(4, 30, share=0.0),
    "no_rows": topk_codes(0, 3, 30),
    "twice": TopKCodes(grid(6, 5, low=1), torch.tensor([[3, 3, 1, 3, 0]] * 6).int()),
}


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradients(codes, w_dec, b_dec, upstream, backend):
    leaves = [part.clone().requires_grad_() for part in (codes.values, w_dec, b_dec)]
    out = ops.decode(codes._replace(values=leaves[0]), *leaves[1:], backend=backend)
    out.backward(upstream.to(out.dtype))
    return out.detach(), *(leaf.grad for leaf in leaves)


@pytest.mark.parametrize("width", [1, 6, 33, 200])
@pytest.mark.parametrize("name", CODES)
def test_whole_numbers_and_their_gradients_are_exact(name, width):
    codes, w_dec, b_dec = CODES[name], grid(30, width, seed=2), grid(width, seed=3)
    n_rows = len(as_csr(codes).indptr) - 1
    upstream = grid(n_rows, width, seed=4)
    got = gradients(codes, w_dec, b_dec, upstream, "cpu")
    wide = codes._replace(values=codes.values.double())
    wanted = gradients(wide, w_dec.double(), b_dec.double(), upstream, "reference")
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one.double(), other)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("width", [1, 15, 64, 391])
def test_instruction_sets_differ_by_rounding_only(width, isa):
    rows = as_csr(topk_codes(50, 9, 80))._replace(values=normal(450))
    table, b, x = normal(80, width), normal(width, seed=2), normal(50, width, seed=3)
    whole = dense(rows, 80)
    got = decode_cpu.summed(*rows, table, b, isa)
    wanted = whole @ table.double() + b
    # 10 additions: at most so many half units in the last place of what is added
    assert ((got - wanted).abs() <= 10 * 2**-24 * (whole.abs() @ table.double().abs() + b.abs())).all()
    row = torch.arange(50).repeat_interleave(9)
    dots = decode_cpu.dots(rows.indptr, rows.indices, x, table, isa)
    terms = x[row].double() * table[rows.indices.long()].double()
    assert ((dots - terms.sum(dim=1)).abs() <= (width + 1) * 2**-24 * terms.abs().sum(dim=1)).all()
    if isa == "avx2" and "avx512" in SETS:
        assert torch.equal(got, decode_cpu.summed(*rows, table, b, "avx512"))
        assert torch.equal(dots, decode_cpu.dots(rows.indptr, rows.indices, x, table, "avx512"))


def test_threads_change_no_bits(threads):
    codes = topk_codes(300, 12, 100)._replace(values=normal(300, 12).abs())
    results = []
    for count in (1, 2, 3, 7):
        threads(count)
        results.append(gradients(codes, normal(100, 70), normal(70, seed=2), normal(300, 70, seed=3), "cpu"))
    for other in results[1:]:
        for one, first in zip(other, results[0], strict=True):
            assert torch.equal(one, first)


@pytest.mark.filterwarnings("ignore:Input #.* requires gradient and is not a double precision")
@pytest.mark.parametrize("sparse", [False, True])
def test_gradcheck(sparse):
    # linear in each argument, so a wide step has no error but rounding
    codes = csr_rows(6, 10) if sparse else topk_codes(6, 4, 10)
    leaves = [part.clone().requires_grad_() for part in (codes.values, normal(10, 3), normal(3))]

    def decoded(values, w_dec, b_dec):
        return ops.decode(codes._replace(values=values), w_dec, b_dec, backend="cpu")

    assert torch.autograd.gradcheck(decoded, leaves, eps=0.5, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sample", OPERATIONS["decode"].samples, ids=lambda sample: sample.name)
def test_opcheck(sample):
    given = sample.make()
    rows = as_csr(given["codes"])
    arguments = (
        rows.indptr,
        rows.indices,
        *(part.float().requires_grad_() for part in (rows.values, given["w_dec"].clone(), given["b_dec"])),
    )
    result = torch.library.opcheck(torch.ops.saerl_fast.decode_rows.default, arguments)
    assert set(result.values()) == {"SUCCESS"}


def test_gradients_of_gradients_are_refused():
    w_dec = normal(30, 4).requires_grad_()
    (grad,) = torch.autograd.grad(
        ops.decode(CODES["topk"], w_dec, normal(4), backend="cpu").square().sum(), w_dec, create_graph=True
    )
    with pytest.raises(RuntimeError, match="no autograd formula"):
        grad.sum().backward()


def test_half_precision_weights_get_gradients_of_their_own_type():
    w_dec = normal(30, 4).bfloat16().requires_grad_()
    ops.decode(CODES["topk"], w_dec, normal(4), backend="cpu").sum().backward()
    assert w_dec.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_and_infinity_stay_in_their_rows(bad):
    codes = topk_codes(6, 4, 30)
    clean = ops.decode(codes, normal(30, 9), normal(9), backend="cpu")
    codes.values[2, 1] = bad
    got = ops.decode(codes, normal(30, 9), normal(9), backend="cpu")
    assert not got[2].isfinite().any()
    others = torch.arange(6) != 2
    assert torch.equal(got[others], clean[others])


def test_rows_of_the_table_that_nothing_points_to_are_not_read():
    w_dec = torch.full((4, 3), torch.nan)
    w_dec[1] = 2
    rows = CsrRows(torch.tensor([0, 1, 1]), torch.tensor([1]).int(), torch.tensor([3.0]))
    assert ops.decode(rows, w_dec, torch.ones(3), backend="cpu").tolist() == [[7, 7, 7], [1, 1, 1]]


def test_float64_goes_to_the_reference():
    with pytest.raises(BackendUnavailable, match="float64"):
        ops.decode(CODES["topk"], normal(30, 4).double(), normal(4), backend="cpu")
    assert ops.decode(CODES["topk"], normal(30, 4).double(), normal(4)).dtype == torch.float64
