"""The CUDA kernels of sparse rows: pooling and cluster sums, run thread by thread on the CPU, and on a GPU.

Both through the Python side of their backends; on the CPU the emulated kernels stand in for the compiled ones.
"""

from types import SimpleNamespace

import pytest
import torch

from saerl_fast import ops
from saerl_fast.codes import OUTSIDE, OVERFLOWED
from saerl_fast.errors import InputError
from saerl_fast.kernels import kmeans_cuda, native, pool_cuda, scores_cuda
from saerl_fast.ops import CsrRows, TopKCodes
from tests.kernels import emulated
from tests.op_table import OPERATIONS, csr_rows, dense, grid, topk_codes
from tests.ops.test_spaced_rows import spread

MODES = ("sum", "mean", "max", "last", "count")
OFFSETS = torch.tensor([0, 0, 1, 12, 13, 13, 30])


@pytest.fixture(params=[pytest.param("cpu", marks=emulated.needed), pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch, tmp_path_factory):
    if request.param == "cuda":
        if scores_cuda.missing():
            pytest.skip(scores_cuda.missing())
        return "cuda"
    folder = tmp_path_factory.mktemp("emulated")
    kernels = {
        "segment_pool_cuda": emulated.compiled("segment_pool", folder).saerl_segment_pool,
        "cluster_sums_cuda": emulated.compiled("cluster_sums", folder).saerl_cluster_sums,
    }

    def called(kernel):
        def call(*arguments):
            *rest, on, stream = map(emulated.size, arguments)
            assert kernel(*rest, int(on.value), stream) == 0

        return call

    module = SimpleNamespace(**{name: called(kernel) for name, kernel in kernels.items()})
    monkeypatch.setattr(native, "module", lambda: module)
    for user in (pool_cuda, kmeans_cuda):
        monkeypatch.setattr(user, "queue_of", lambda _: (0, 0))
    return "cpu"


def moved(value, device):
    return type(value)(*(part.to(device) for part in value))


def pooled(codes, offsets, n_latents, mode, device):
    spaced = pool_cuda.segment_pool(moved(codes, device), offsets, n_latents, mode)
    return CsrRows(*(part.cpu() for part in spaced.to_csr()))


def assert_same(got, wanted):
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def random_codes(form, n_latents):
    """Values of both signs that do round, some of them zero and some that cancel."""
    codes = topk_codes(30, min(9, n_latents), n_latents) if form == "topk" else csr_rows(30, n_latents, share=0.1)
    values = torch.randn(codes.values.shape, generator=torch.Generator().manual_seed(0))
    values[codes.values == 0] = 0.0
    return codes._replace(values=values)


@pytest.mark.parametrize("sample", OPERATIONS["segment_pool"].samples, ids=lambda sample: sample.name)
def test_pooling_of_the_samples(device, sample):
    given = sample.make()
    wanted = ops.segment_pool(**given, backend="reference")
    assert_same(pooled(given["codes"], given["offsets"], given["n_latents"], given["mode"], device), wanted)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", ["topk", "csr"])
def test_bits_are_those_of_the_reference(device, form, mode):
    for n_latents in (1, 33, 700):
        codes = random_codes(form, n_latents)
        wanted = ops.segment_pool(codes, OFFSETS, n_latents, mode, backend="reference")
        assert_same(pooled(codes, OFFSETS, n_latents, mode, device), wanted)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n_latents", [1, 33, 700])
def test_tokens_with_room_between_them(device, mode, n_latents):
    codes = random_codes("csr", n_latents)
    wanted = ops.segment_pool(codes, OFFSETS, n_latents, mode, backend="reference")
    for room in (0, 3, 2000):
        assert_same(pooled(spread(codes, room), OFFSETS, n_latents, mode, device), wanted)
    # of places there are no more than all segments can need
    spaced = pool_cuda.segment_pool(moved(spread(codes, 2000), device), OFFSETS, n_latents, mode)
    assert len(spaced.indices) == 6 * n_latents


@pytest.mark.parametrize("mode", MODES)
def test_tokens_without_room_mark_their_segments_alone(device, mode):
    codes = spread(random_codes("csr", 300), 2)
    codes.counts[12], codes.counts[29] = OUTSIDE, OVERFLOWED
    got = pool_cuda.segment_pool(moved(codes, device), OFFSETS, 300, mode).counts.cpu()
    assert got[[3, 5]].tolist() == [OUTSIDE, OVERFLOWED]
    assert (got[[0, 1, 2, 4]] >= 0).all()
    assert got[[0, 4]].tolist() == [0, 0]
    wanted = ops.segment_pool(random_codes("csr", 300), OFFSETS, 300, mode, backend="reference")
    assert got[2] == wanted.indptr.diff()[2]


@pytest.mark.parametrize("mode", MODES)
def test_latents_that_do_not_fit_at_once(device, mode, monkeypatch):
    """Room for 64 latents of 300 (32 for max): the segment is read once per range."""
    codes = random_codes("csr", 300)
    wanted = ops.segment_pool(codes, OFFSETS, 300, mode, backend="reference")
    for room in (256, 256 + 127):
        monkeypatch.setattr(pool_cuda, "shared_bytes", lambda _, room=room: room)
        assert_same(pooled(codes, OFFSETS, 300, mode, device), wanted)


@pytest.mark.parametrize(("mode", "n_latents"), [("sum", 12_288), ("max", 6_144)])
def test_latents_that_take_just_what_a_block_has_without_asking(device, mode, n_latents):
    """48 kB, of which the kernel needs some bytes beside."""
    codes = random_codes("topk", n_latents)
    wanted = ops.segment_pool(codes, OFFSETS, n_latents, mode, backend="reference")
    assert_same(pooled(codes, OFFSETS, n_latents, mode, device), wanted)


def test_a_token_of_more_entries_than_threads(device):
    codes = csr_rows(9, 1200, share=0.9)
    offsets = torch.tensor([0, 4, 9])
    for mode in MODES:
        wanted = ops.segment_pool(codes, offsets, 1200, mode, backend="reference")
        assert_same(pooled(codes, offsets, 1200, mode, device), wanted)


def test_special_values(device):
    rows = [[torch.nan, -1.0, torch.inf], [5.0, -2.0, 1.0], [7.0, torch.nan, -torch.inf]]
    codes = TopKCodes(torch.tensor(rows), torch.tensor([[0, 1, 2]] * 3).int())
    got = pooled(codes, torch.tensor([0, 2, 3]), 3, "max", device)
    assert got.indices.tolist() == [0, 1, 2, 0, 1, 2]
    assert got.values.isnan().tolist() == [True, False, False, False, True, False]
    assert got.values[[1, 2, 3, 5]].tolist() == [-1.0, torch.inf, 7.0, -torch.inf]
    codes = TopKCodes(torch.tensor([[1.5, 1e-45], [-1.5, 2.0]]), torch.tensor([[3, 70], [3, 5]]).int())
    assert pooled(codes, torch.tensor([0, 2]), 100, "sum", device).indices.tolist() == [5, 70]
    assert pooled(codes, torch.tensor([0, 2]), 100, "mean", device).indices.tolist() == [5]


def test_the_room_is_what_a_segment_can_need(device):
    spaced = pool_cuda.segment_pool(moved(topk_codes(30, 9, 20), device), OFFSETS, 20, "sum")
    assert spaced.starts.tolist() == [0, 0, 9, 29, 38, 38, 58]
    assert len(spaced.indices) == len(spaced.values) == 58


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stray", [-(2**31), -1, 300, 2**31 - 1, 2**32 + 1])
def test_an_index_outside_marks_its_segment_alone(device, mode, stray):
    for form in ("topk", "csr"):
        codes = random_codes(form, 300)
        indices = codes.indices.long()
        last_entry = int(codes.indptr[13]) - 1 if form == "csr" else (12, 3)
        indices[last_entry] = stray
        given = codes._replace(indices=indices if stray > 2**31 else indices.int())
        spaced = pool_cuda.segment_pool(moved(given, device), OFFSETS, 300, mode)
        assert (spaced.counts == OUTSIDE).tolist() == [False, False, False, True, False, False]
        with pytest.raises(InputError, match="1 of 6 rows"):
            spaced.to_csr()


@pytest.mark.parametrize(("place", "value"), [(1, -5), (5, 10**15), (3, 0)])
def test_broken_offsets_of_csr_tokens_are_never_followed(device, place, value):
    codes = random_codes("csr", 300)
    codes.indptr[place] = value
    spaced = pool_cuda.segment_pool(moved(codes, device), OFFSETS, 300, "sum")
    assert (spaced.counts == OUTSIDE).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_floats_are_summed_in_float32(device, dtype):
    codes = random_codes("topk", 100)
    codes = codes._replace(values=codes.values.to(dtype))
    wanted = ops.segment_pool(codes, OFFSETS, 100, "sum", backend="reference")
    assert_same(pooled(codes, OFFSETS, 100, "sum", device), wanted)


# ---- sums of clusters


@pytest.mark.parametrize("shortest", [3, 64])
@pytest.mark.parametrize("room", [256, 48 * 1024])
def test_cluster_sums_of_whole_numbers(device, room, shortest, monkeypatch):
    """All latents at once and in ranges of 64; clusters of one piece and of several."""
    monkeypatch.setattr(kmeans_cuda, "shared_bytes", lambda _: room)
    monkeypatch.setattr(kmeans_cuda, "SHORTEST", shortest)
    rows, labels = csr_rows(30, 300), torch.tensor([0, 4, 4, 1, 4] * 6)
    sums, counts = kmeans_cuda.update(moved(rows, device), labels.to(device), 7, 300)
    wanted = torch.zeros(7, 300, dtype=torch.float64).index_add_(0, labels, dense(rows, 300))
    assert torch.equal(sums.cpu().double(), wanted)
    assert counts.tolist() == [6, 6, 0, 0, 18, 0, 0]
    assert counts.dtype == torch.int64


def test_cluster_sums_of_one_piece_are_added_in_row_order(device):
    rows, labels = random_codes("csr", 90), torch.arange(30) % 4
    sums, _ = kmeans_cuda.update(moved(rows, device), labels.to(device), 4, 90)
    assert torch.equal(sums.cpu(), ops.kmeans_update(rows, labels, 4, n_latents=90, backend="reference")[0])


def test_no_rows_and_one_latent(device):
    none = CsrRows(torch.tensor([0]), torch.zeros(0, dtype=torch.int32), torch.zeros(0))
    sums, counts = kmeans_cuda.update(moved(none, device), torch.zeros(0, dtype=torch.int64, device=device), 3, 5)
    assert sums.tolist() == [[0.0] * 5] * 3
    assert counts.tolist() == [0, 0, 0]
    rows = CsrRows(torch.tensor([0, 1, 1, 2]), torch.zeros(2, dtype=torch.int32), grid(2, low=1))
    sums, _ = kmeans_cuda.update(moved(rows, device), torch.tensor([1, 1, 1], device=device), 2, 1)
    assert sums.tolist() == [[0.0], [float(rows.values.sum())]]
