"""The Triton kernels of the encode in Triton's interpreter: scores, what the epilogue leaves, the selects."""

import pytest
import torch

from saerl_fast import ops
from saerl_fast.codes import OVERFLOWED
from saerl_fast.errors import BackendUnavailable
from saerl_fast.kernels import csr_capacity, latent_groups, scores_cuda, triton_runtime
from saerl_fast.ops import reference
from tests.kernels.hard_rows import INPUTS, by_sorting
from tests.kernels.test_cuda_logic import group_maxima, ranks
from tests.op_table import LAYOUTS, OPERATIONS, encoder, grid, relaid

pytestmark = [
    pytest.mark.skipif(triton_runtime.refuses("cpu") is not None, reason=str(triton_runtime.refuses("cpu"))),
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable"),
]

TERMS = ("x", "w_enc", "b_enc", "b_dec", "scale", "row_index")


@pytest.fixture(scope="module")
def kernels():
    from saerl_fast.kernels import encode_triton

    return encode_triton


def samples(op, without=("many_blocks",)):
    return [pytest.param(s, id=s.name) for s in OPERATIONS[op].samples if s.name not in without]


def wide(arguments):
    return {
        name: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }


def true_scores(arguments):
    x, w_enc, b_enc, b_dec, scale, index = (wide(arguments).get(name) for name in TERMS)
    return reference.scores(x if index is None else x[index], w_enc, b_enc, b_dec, scale).float()


def chunks(kernels, arguments, group, **more):
    return kernels.ScoreChunks(*(arguments.get(name) for name in TERMS), group, **more)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sample", samples("topk_encode", without=("many_blocks", "odd_and_wide")))
def test_scores_and_maxima_of_every_sample_and_layout(kernels, sample, layout, tmp_path, monkeypatch):
    monkeypatch.setattr(scores_cuda, "BUFFER_NUMBERS", 500)
    arguments = relaid(sample.make(), layout, tmp_path)
    wanted = true_scores(sample.make())
    seen = 0
    for rows, scores, maxima in chunks(kernels, arguments, 32):
        assert torch.equal(scores, wanted[rows])
        assert torch.equal(maxima, group_maxima(wanted[rows], 32))
        seen += len(scores)
    assert seen == len(wanted)


@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_tiles_that_do_not_fill(kernels, dtype, group):
    """More tiles than programs; rows, latents and channels that are a multiple of nothing."""
    arguments = encoder(261, 70, 1031, dtype, b_dec=grid(70, seed=4))
    wanted = true_scores(arguments)
    ((_, scores, maxima),) = chunks(kernels, arguments, group)
    assert torch.equal(scores, wanted)
    assert torch.equal(maxima, group_maxima(wanted, group))


def test_counts_of_groups(kernels):
    arguments = encoder(40, 16, 700)
    theta = grid(700, seed=8, low=0, high=40)
    arguments["x"][3, 5] = torch.nan
    ((_, scores, counts),) = chunks(kernels, arguments, 32, theta=theta)
    kept = torch.nn.functional.pad((scores > theta).int(), (0, 4)).view(40, 22, 32).sum(dim=2)
    kept[3] = 255
    assert torch.equal(counts.int(), kept.int())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scores_are_as_near_as_those_of_torch(kernels, dtype):
    generator = torch.Generator().manual_seed(0)
    make = lambda *size: torch.randn(*size, generator=generator).to(dtype)  # noqa: E731
    arguments = {"x": make(40, 200), "w_enc": make(300, 200), "b_enc": make(300), "b_dec": make(200)}
    x, w, b, centre = (arguments[name].double() for name in ("x", "w_enc", "b_enc", "b_dec"))
    exact = (x - centre) @ w.T + b
    plain = (x.float() - centre.float()) @ w.float().T + b.float()
    ((_, scores, _),) = chunks(kernels, arguments, 32)
    assert (scores.double() - exact).abs().max() <= 2 * (plain.double() - exact).abs().max()


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize(("width", "k", "group"), [(33, 33, 32), (700, 5, 64)])
def test_selects_what_a_stable_sort_selects(kernels, name, width, k, group):
    scores = INPUTS[name](width)[:1].contiguous()
    values, indices = torch.full((1, k), torch.nan), torch.full((1, k), -1, dtype=torch.int32)
    kernels._select_rows(scores, group_maxima(scores, group), group, False, values, indices)
    wanted_values, wanted_indices = by_sorting(scores, k)
    assert torch.equal(values, wanted_values)
    assert torch.equal(indices, wanted_indices)


@pytest.mark.parametrize(
    "name", ["plain", "every_term", "no_relu", "bfloat16", "no_rows", "no_rows_chosen", "one_latent"]
)
def test_topk_is_the_reference(name):
    (sample,) = [s for s in OPERATIONS["topk_encode"].samples if s.name == name]
    arguments = sample.make()
    if "row_index" not in arguments:
        arguments["x"] = arguments["x"][:3]
    wanted = ops.topk_encode(**wide(arguments), backend="reference")
    got = ops.topk_encode(**arguments, backend="triton")
    assert torch.equal(got.values, wanted.values)
    assert torch.equal(got.indices, wanted.indices)


@pytest.mark.parametrize("sample", samples("threshold_encode"))
def test_threshold_is_the_reference(sample, kernels, monkeypatch):
    monkeypatch.setattr(scores_cuda, "BUFFER_NUMBERS", 500)
    wanted = ops.threshold_encode(**wide(sample.make()), backend="reference")
    got = ops.threshold_encode(**sample.make(), backend="triton")
    for one, other in zip(got, wanted, strict=True):
        assert torch.equal(one, other)


def test_what_outgrows_the_guess_is_done_again(monkeypatch):
    monkeypatch.setattr(csr_capacity, "ENTRIES_PER_ROW", 20)
    arguments = encoder(9, 16, 100, theta=-1.0)
    wanted = ops.threshold_encode(**arguments, backend="reference")
    assert len(wanted.values) > 9 * 20
    for one, other in zip(ops.threshold_encode(**arguments, backend="triton"), wanted, strict=True):
        assert torch.equal(one, other)


def test_rows_without_a_wait_are_the_same_and_those_without_room_are_marked():
    arguments = encoder(9, 16, 100, theta=-1.0)
    wanted = ops.threshold_encode(**arguments, backend="reference")
    enough = ops.threshold_encode_spaced(**arguments, backend="triton", entries_per_row=100)
    for one, other in zip(enough.to_csr(), wanted, strict=True):
        assert torch.equal(one, other)
    scarce = ops.threshold_encode_spaced(**arguments, backend="triton", entries_per_row=20)
    fits = wanted.indptr[1:] <= 9 * 20
    assert 0 < fits.sum() < 9
    assert torch.equal(scarce.counts, torch.where(fits, wanted.indptr.diff(), OVERFLOWED))
    entries = int(wanted.indptr[fits.sum()])
    assert torch.equal(scarce.values[:entries], wanted.values[:entries])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_an_index_that_names_no_row_and_a_nan_give_nan_rows(dtype):
    arguments = encoder(9, 16, 100, dtype, row_index=torch.tensor([5, -1, 9, 2, 3]))
    arguments["x"][2, 7] = torch.nan
    values, indices = ops.topk_encode(**arguments, k=4, backend="triton")
    assert values.isnan().all(dim=1).tolist() == [False, True, True, True, False]
    assert indices[1:4].tolist() == [[0, 1, 2, 3]] * 3
    rows = ops.threshold_encode(**arguments, theta=10.0, backend="triton")
    assert rows.indptr.diff()[1:4].tolist() == [1, 1, 1]
    assert rows.values[rows.indptr[1:4]].isnan().all()
    assert rows.indices[rows.indptr[1:4]].tolist() == [0, 0, 0]


def test_a_nan_in_theta_makes_every_row_one():
    theta = torch.zeros(100)
    theta[42] = torch.nan
    rows = ops.threshold_encode(**encoder(9, 16, 100), theta=theta, backend="triton")
    assert rows.indptr.tolist() == list(range(10))
    assert rows.values.isnan().all()


def test_what_the_select_does_not_take_is_refused(monkeypatch):
    assert latent_groups.refuses(49152, 64) is None
    most = 512 if latent_groups.compiled_select() else 256  # a build without CUDA has the smaller one alone
    with pytest.raises(BackendUnavailable, match=f"keeps at most {most} latents per row, not k=600"):
        ops.topk_encode(**encoder(2, 8, 1000), k=600, backend="triton")
    monkeypatch.setattr(latent_groups, "compiled_select", lambda: False)
    with pytest.raises(BackendUnavailable, match="keeps at most 256 latents per row, not k=257"):
        ops.topk_encode(**encoder(2, 8, 1000), k=257, backend="triton")
    assert "not of 600000 latents" in latent_groups.refuses(600_000, 8)


@pytest.mark.parametrize(
    ("n_latents", "k", "group"), [(49152, 64, 32), (24576, 64, 32), (49152, 16, 64), (131072, 64, 64)]
)
def test_groups_are_of_the_size_that_moves_the_fewest_bytes(n_latents, k, group):
    assert latent_groups.group_size_for(n_latents, k) == group


def test_ranks_are_ordered_as_numbers_are():
    numbers = torch.tensor([-torch.inf, -2.5, -1e-45, -0.0, 0.0, 1e-45, 3.0, torch.inf, torch.nan])
    rank = ranks(numbers)
    assert (rank.diff() >= 0).all()
    assert rank[3] == rank[4]
    assert rank[-1] == 2**32 - 1
    assert scores_cuda.BUFFER_NUMBERS * 4 <= 0.8e9
