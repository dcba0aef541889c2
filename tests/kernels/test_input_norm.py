"""Input norms inside of the product: Triton's interpreter against float64, rows that are hard on them, the choice."""

import math

import pytest
import torch

from saerl_fast import ops
from saerl_fast.bench import proof
from saerl_fast.bench.data import Encoder
from saerl_fast.kernels import scores_cuda, topk_cuda, triton_runtime
from saerl_fast.kernels.input_norm import normalised
from saerl_fast.ops.choice import Call, pick
from saerl_fast.ops.table import NORM_ELSEWHERE, TABLE
from saerl_fast.sae import SAE
from tests import tiny
from tests.kernels import emulated, emulated_device

NORMS = ["layer_norm", "constant_norm_rescale"]
TYPES = [torch.float32, torch.bfloat16, torch.float16]
interpreted = pytest.mark.skipif(triton_runtime.refuses("cpu") is not None, reason=str(triton_runtime.refuses("cpu")))
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")

MEANS = (0.0, 0.1, 1.9, 2.1, 40.0, 3000.0)
"""Of the rows, in standard deviations."""


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def hard(dtype, width=200, latents=300):
    """Rows with small and large means; half of the latents lie along the mean."""
    x = (normal(len(MEANS), width) + torch.tensor(MEANS)[:, None]).to(dtype)
    w = normal(latents, width, seed=1)
    w[::2] += 3
    terms = {"b_enc": normal(latents, seed=2), "b_dec": normal(width, seed=3), "scale": None, "row_index": None}
    return {"x": x, "w_enc": (w / width**0.5).to(dtype)} | terms


def truth(arguments, norm):
    """Scores in float64, and what "exact" allows them to be off by."""
    x, w = normalised(arguments["x"].double(), norm), arguments["w_enc"].double()
    h = (x - arguments["b_dec"].double()) @ w.T + arguments["b_enc"].double()
    sizes = (x - arguments["b_dec"].double()).norm(dim=1)[:, None] * w.norm(dim=1) + arguments["b_enc"].double().abs()
    return h, 2.0**-20 * sizes


def by_triton(arguments, norm, monkeypatch):
    from saerl_fast.kernels import encode_triton

    names = ("x", "w_enc", "b_enc", "b_dec", "scale", "row_index")
    chunks = encode_triton.ScoreChunks(*(arguments[name] for name in names), 32, norm=norm)
    monkeypatch.setattr(scores_cuda, "BUFFER_NUMBERS", 4 * arguments["w_enc"].shape[0])
    return torch.cat([scores.clone() for _, scores, _ in chunks])


@interpreted
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_scores_are_exact_whatever_the_mean_of_a_row(dtype, norm, monkeypatch):
    arguments = hard(dtype)
    h, slack = truth(arguments, norm)
    error = (by_triton(arguments, norm, monkeypatch).double() - h).abs()
    assert (error <= slack).all()
    plain = normalised(arguments["x"], norm).float() - arguments["b_dec"]
    plain = plain @ arguments["w_enc"].float().T + arguments["b_enc"]
    # rows whose mean is small, as those of a model are
    assert error[:2].max() <= 2 * (plain.double() - h)[:2].abs().max()
    # what a copy of x', rounded to its type, would have cost
    if dtype != torch.float32:
        rounded = normalised(arguments["x"], norm).to(dtype).double() - arguments["b_dec"].double()
        off = (rounded @ arguments["w_enc"].double().T + arguments["b_enc"].double() - h).abs()
        assert off.max() > 50 * error.max()


@interpreted
def test_steep_rows_need_the_second_launch(monkeypatch):
    from saerl_fast.kernels import row_norms_triton

    monkeypatch.setattr(row_norms_triton, "STEEP", math.inf)
    arguments = hard(torch.bfloat16)
    h, slack = truth(arguments, "layer_norm")
    off = ((by_triton(arguments, "layer_norm", monkeypatch).double() - h).abs() > slack).any(dim=1)
    assert not off[:4].any()
    assert off[5]


@interpreted
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_without_a_spread_and_rows_that_are_no_numbers(dtype, norm):
    x = normal(8, 33).to(dtype)
    x[1], x[2] = 0, 7.25
    x[3, 4], x[4, 5] = torch.nan, torch.inf
    arguments = {"x": x, "w_enc": normal(40, 33, seed=1).to(dtype), "b_enc": normal(40, seed=2)}
    index = torch.tensor([0, 1, 2, 3, 4, 8, -1, 5])
    named = torch.tensor([True] * 5 + [False, False, True])
    values, indices = ops.topk_encode(**arguments, k=6, relu=False, norm=norm, row_index=index, backend="triton")
    wide = {name: part.double() for name, part in arguments.items()}
    wanted = ops.topk_encode(**wide, k=6, relu=False, norm=norm, row_index=index[named], backend="reference")
    assert torch.equal(values[named].isnan(), wanted.values.isnan())
    torch.testing.assert_close(values[named], wanted.values, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert torch.equal(indices[named], wanted.indices)
    assert values[~named].isnan().all()


def check_both_encodes(device, norm, backend, n_rows, width, latents, k):
    generator = torch.Generator().manual_seed(5)
    inputs = hard(torch.bfloat16, width, latents) | {"scale": normal(latents, seed=4).abs() + 0.5}
    index = torch.randint(len(MEANS), (n_rows,), generator=generator)
    if backend == "cuda":
        index[index == 5] = 0  # plain float32 loses a mean of thousands of standard deviations
    given = {name: inputs[name].to(device) for name in ("w_enc", "b_enc", "b_dec", "scale")}
    given |= {"row_index": index.to(device), "norm": norm, "backend": backend}
    codes = ops.topk_encode(inputs["x"].to(device), k=k, **given)
    exact = Encoder(
        normalised(inputs["x"].double()[index], norm),
        inputs["w_enc"].double() * inputs["scale"].double()[:, None],
        inputs["b_enc"].double() * inputs["scale"].double(),
        inputs["b_dec"].double(),
    )
    assert proof.encoded(ops.TopKCodes(*(part.cpu() for part in codes)), exact, k).failure is None
    rows = ops.threshold_encode(inputs["x"].to(device), theta=1.0, **given)
    assert proof.thresholded(ops.CsrRows(*(part.cpu() for part in rows)), exact, 1.0).failure is None
    assert len(rows.values) > 10 * n_rows


@interpreted
@pytest.mark.parametrize("norm", NORMS)
def test_both_encodes_are_those_of_float64(norm):
    check_both_encodes("cpu", norm, "triton", 3, 200, 300, 9)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize("norm", NORMS)
def test_both_encodes_are_those_of_float64_on_a_device(norm, backend):
    if reason := triton_runtime.refuses("cuda") if backend == "triton" else scores_cuda.missing():
        pytest.skip(reason)
    check_both_encodes("cuda", norm, backend, 700, 1536, 8192, 64)


@pytest.mark.parametrize("norm", NORMS)
def test_backends_that_take_no_norm_get_rows_that_are_normalised(norm):
    inputs = hard(torch.float32)
    given = {name: inputs[name] for name in ("w_enc", "b_enc", "b_dec")} | {"row_index": torch.tensor([1, 0, 3])}
    exact = Encoder(normalised(inputs["x"].double()[given["row_index"]], norm), *inputs_of(given))
    for backend in ("cpu", "reference"):
        codes = ops.topk_encode(inputs["x"], k=9, norm=norm, backend=backend, **given)
        assert proof.encoded(codes, exact, 9).failure is None
        rows = ops.threshold_encode(inputs["x"], theta=1.0, norm=norm, backend=backend, **given)
        assert proof.thresholded(rows, exact, 1.0).failure is None


def inputs_of(given):
    return (given[name].double() for name in ("w_enc", "b_enc", "b_dec"))


@emulated.needed
@pytest.mark.parametrize("norm", NORMS)
def test_cuda_normalises_chunk_by_chunk(norm, tmp_path_factory, monkeypatch):
    emulated_device.use(monkeypatch, emulated_device.libraries(tmp_path_factory.mktemp("emulated")))
    monkeypatch.setattr(scores_cuda, "BUFFER_NUMBERS", 900)
    inputs = hard(torch.bfloat16)
    # plain float32, as torch has it, loses a mean of thousands of standard deviations
    inputs["x"] = inputs["x"][:4]
    names = ("x", "w_enc", "b_enc")
    codes = topk_cuda.encode(*(inputs[name] for name in names), 9, inputs["b_dec"], None, None, True, norm)
    exact = Encoder(normalised(inputs["x"].double(), norm), *inputs_of(inputs))
    assert proof.encoded(ops.TopKCodes(*codes), exact, 9).failure is None


def test_a_norm_is_taken_where_it_costs_no_float32_product(monkeypatch):
    for op in ("topk_encode", "threshold_encode"):
        call = Call("cuda", k=8, n_latents=100, width=16)
        for triton, wanted in ((None, ("cuda", "triton")), ("no Triton", ("cuda", "cuda"))):
            monkeypatch.setattr(triton_runtime, "refuses", lambda _, reason=triton: reason)
            monkeypatch.setattr(scores_cuda, "missing", lambda: None)
            monkeypatch.setattr(topk_cuda, "max_k", lambda: 512)
            found = [pick(TABLE, op, Call(**{**vars_of(call), "norm": norm}), None) for norm in (False, True)]
            assert tuple(name for name, _ in found) == wanted
            assert (f"cuda: {NORM_ELSEWHERE}" in found[1][1]) == (triton is None)


def vars_of(call):
    return {name: getattr(call, name) for name in ("device", "k", "n_latents", "width")}


@interpreted
@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_an_sae_behind_a_norm_hands_the_hook_s_output_on_as_it_is(kind, monkeypatch):
    """No masked copy, no cast, no normalised copy."""
    from saerl_fast.kernels import encode_triton

    sae: SAE = tiny.sae(kind=kind, input_norm="layer_norm")
    hidden, kept = normal(9, sae.d_in).bfloat16(), torch.tensor([5, 1, 7])
    seen = []
    name = "topk" if kind == "topk" else "threshold_work"
    real = getattr(encode_triton, name)
    monkeypatch.setattr(encode_triton, name, lambda x, *rest: (seen.append((x.data_ptr(), x.dtype)), real(x, *rest))[1])
    with ops.backend("triton"):
        codes = sae.encode(hidden, row_index=kept)
    assert seen == [(hidden.data_ptr(), torch.bfloat16)]
    with ops.backend("reference"):
        wanted = sae.encode(hidden.float(), row_index=kept)
    assert torch.equal(codes.indices, wanted.indices)
    torch.testing.assert_close(codes.values, wanted.values, rtol=1e-5, atol=1e-5)


@interpreted
def test_rows_with_room_between_them_are_normalised_too():
    sae = tiny.sae(kind="jumprelu", input_norm="constant_norm_rescale")
    hidden, kept = normal(9, sae.d_in), torch.tensor([5, 1, 7])
    wanted = sae.encode(hidden, row_index=kept)
    for backend in ("triton", "reference"):
        with ops.backend(backend):
            got = sae.encode_spaced(hidden, row_index=kept).to_csr()
        assert torch.equal(got.indices, wanted.indices)
        torch.testing.assert_close(got.values, wanted.values, rtol=1e-5, atol=1e-5)
