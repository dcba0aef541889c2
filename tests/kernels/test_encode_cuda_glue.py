"""The CUDA backends of the encode from end to end on the CPU, through the emulation: chunks, gather, fold, capacity."""

import pytest
import torch

from saerl_fast.codes import OVERFLOWED
from saerl_fast.errors import CapacityError
from saerl_fast.kernels import csr_capacity, native, scores_cuda, threshold_cuda, topk_cuda
from saerl_fast.ops import reference
from tests.kernels import emulated, emulated_device
from tests.op_table import LAYOUTS, OPERATIONS, encoder, grid, relaid

pytestmark = [emulated.needed, pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")]

ENCODER = ("x", "w_enc", "b_enc", "b_dec", "scale", "row_index")


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    return emulated_device.libraries(tmp_path_factory.mktemp("emulated"))


@pytest.fixture(autouse=True)
def device(libraries, monkeypatch):
    emulated_device.use(monkeypatch, libraries)
    # three rows a chunk at 100 latents
    monkeypatch.setattr(scores_cuda, "BUFFER_NUMBERS", 300)


def samples(op):
    return [pytest.param(s, id=s.name) for s in OPERATIONS[op].samples if s.name != "many_blocks"]


def wide(arguments):
    return {
        name: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for name, v in arguments.items()
    }


def whole(arguments, *names):
    return [arguments.get(name) for name in names]


def assert_same(got, wanted):
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sample", samples("topk_encode"))
def test_topk_is_the_reference(sample, layout, tmp_path):
    arguments = {"relu": True} | relaid(sample.make(), layout, tmp_path)
    names = ("x", "w_enc", "b_enc", "k", "b_dec", "scale", "row_index", "relu")
    assert_same(topk_cuda.encode(*whole(arguments, *names)), reference.topk_encode(*whole(wide(arguments), *names)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sample", samples("threshold_encode"))
def test_threshold_is_the_reference(sample, layout, tmp_path):
    arguments = relaid(sample.make(), layout, tmp_path)
    names = ("x", "w_enc", "b_enc", "theta", "b_dec", "scale", "row_index")
    wanted = reference.threshold_encode(*whole(wide(arguments), *names))
    assert_same(csr_capacity.collect(threshold_cuda.work(*whole(arguments, *names))), wanted)


def test_what_outgrows_the_guess_is_done_again(monkeypatch):
    arguments = encoder(9, 16, 100, theta=-1.0, b_dec=None, scale=None, row_index=None)
    wanted = reference.threshold_encode(**arguments)
    assert len(wanted.values) > 9 * 20
    monkeypatch.setattr(csr_capacity, "ENTRIES_PER_ROW", 20)
    runs = []
    into = csr_capacity.Work.into
    monkeypatch.setattr(csr_capacity.Work, "into", lambda work, places: runs.append(places) or into(work, places))
    assert_same(csr_capacity.collect(threshold_cuda.work(**arguments)), wanted)
    assert runs == [180, len(wanted.values)]


@pytest.mark.parametrize("sample", samples("threshold_encode"))
def test_rows_with_room_enough_are_the_reference(sample):
    arguments = sample.make()
    encoder = whole(arguments, "x", "w_enc", "b_enc", "theta", "b_dec", "scale", "row_index")
    n_latents = arguments["w_enc"].shape[0]
    spaced = csr_capacity.spaced(threshold_cuda.work(*encoder), n_latents)
    assert_same(spaced.to_csr(), csr_capacity.collect(threshold_cuda.work(*encoder)))
    assert len(spaced.indices) == len(spaced.counts) * n_latents


def test_rows_behind_the_last_place_are_marked_and_the_others_are_right():
    arguments = encoder(9, 16, 100, theta=-1.0, b_dec=None, scale=None, row_index=None)
    encoder_ = whole(arguments, "x", "w_enc", "b_enc", "theta", "b_dec", "scale", "row_index")
    wanted = reference.threshold_encode(**arguments)
    spaced = csr_capacity.spaced(threshold_cuda.work(*encoder_), 20)
    places = 9 * 20
    fitting = int((wanted.indptr[1:] <= places).sum())
    assert 0 < fitting < 9
    assert spaced.counts.tolist() == [*wanted.indptr.diff()[:fitting].tolist(), *[OVERFLOWED] * (9 - fitting)]
    assert (spaced.starts.diff() >= 0).all()
    assert spaced.starts[-1] == len(spaced.indices) == places
    entries = int(wanted.indptr[fitting])
    assert torch.equal(spaced.indices[:entries], wanted.indices[:entries])
    assert torch.equal(spaced.values[:entries], wanted.values[:entries])
    with pytest.raises(CapacityError, match=f"{9 - fitting} of 9 rows"):
        spaced.to_csr()


def test_room_to_the_last_place_is_enough():
    arguments = encoder(3, 16, 100, theta=-1.0, b_dec=None, scale=None, row_index=torch.tensor([1, 1, 1, 1]))
    encoder_ = whole(arguments, "x", "w_enc", "b_enc", "theta", "b_dec", "scale", "row_index")
    wanted = reference.threshold_encode(**arguments)
    each = int(wanted.indptr[1])
    assert_same(csr_capacity.spaced(threshold_cuda.work(*encoder_), each).to_csr(), wanted)
    short = csr_capacity.spaced(threshold_cuda.work(*encoder_), each - 1)
    assert (short.counts == OVERFLOWED).tolist() == [False, False, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_index_that_names_no_row_gives_a_nan_row(dtype):
    index = torch.tensor([5, -1, 0, 9, 3])
    arguments = encoder(9, 16, 100, dtype, b_dec=grid(16, seed=4), scale=None, row_index=index)
    values, indices = topk_cuda.encode(**arguments, k=7, relu=True)
    named = [0, 2, 4]
    wanted = reference.topk_encode(**arguments | {"row_index": index[named]}, k=7, relu=True)
    assert_same((values[named], indices[named]), wanted)
    assert values[[1, 3]].isnan().all()
    assert indices[1].tolist() == list(range(7))
    indptr, columns, entries = csr_capacity.collect(threshold_cuda.work(**arguments, theta=10.0))
    assert indptr.diff()[[1, 3]].tolist() == [1, 1]
    assert entries[indptr[[1, 3]]].isnan().all()
    assert columns[indptr[[1, 3]]].tolist() == [0, 0]


def test_a_nan_in_theta_makes_every_row_one():
    theta = torch.zeros(100)
    theta[42] = torch.nan
    arguments = encoder(9, 16, 100, theta=theta, b_dec=None, scale=None, row_index=None)
    indptr, _, values = csr_capacity.collect(threshold_cuda.work(**arguments))
    assert indptr.tolist() == list(range(10))
    assert values.isnan().all()


def test_half_inputs_are_multiplied_as_they_are(monkeypatch):
    """b_dec is folded: no float32 copy of x or w_enc is made."""
    taken = []
    product = scores_cuda.half_product
    monkeypatch.setattr(
        scores_cuda, "half_product", lambda x, w, s: (taken.append((x.dtype, w.dtype)), product(x, w, s))
    )
    arguments = encoder(9, 16, 100, torch.bfloat16, b_dec=grid(16, seed=4), scale=None, row_index=None)
    topk_cuda.encode(**arguments, k=7, relu=True)
    assert taken == [(torch.bfloat16, torch.bfloat16)] * 3
    assert native.module().cuda


def test_a_change_of_the_weights_in_place_is_seen():
    arguments = encoder(9, 16, 100, torch.bfloat16, b_dec=grid(16, seed=4), scale=None, row_index=None, k=7, relu=True)
    before = topk_cuda.encode(**arguments)
    arguments["w_enc"].data.neg_()
    arguments["b_dec"].numpy()[:] += 1
    after = topk_cuda.encode(**arguments)
    assert_same(after, reference.topk_encode(**arguments))
    assert not torch.equal(before[0], after[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parameters_of_a_model_are_taken_as_they_are(dtype):
    """They require a gradient, and torch refuses to write such a product into memory that is there already."""
    arguments = encoder(9, 16, 100, dtype, theta=10.0, b_dec=grid(16, seed=4), scale=None, row_index=None)
    wanted = reference.threshold_encode(**arguments)
    for name in ("x", "w_enc", "b_enc", "b_dec"):
        arguments[name].requires_grad_()
    got = csr_capacity.collect(threshold_cuda.work(**arguments))
    assert_same(got, wanted)
    assert not got[2].requires_grad


@pytest.mark.parametrize("n_latents", [1, 24576, 49151, 49152, 131072, 2**21, 2**27, 2**28])
@pytest.mark.parametrize("n_rows", [0, 1, 127, 128, 129, 2000, 5461, 16384, 40001])
def test_chunks_are_alike_and_of_whole_tiles(n_rows, n_latents, monkeypatch):
    monkeypatch.setattr(scores_cuda, "BUFFER_NUMBERS", 2**27)
    step = scores_cuda.rows_per_chunk(n_rows, n_latents)
    assert 1 <= step <= max(1, n_rows)
    assert step == 1 or step * scores_cuda.padded(n_latents) <= 2**27
    most = 2**27 // scores_cuda.padded(n_latents)
    if most < 128:
        return
    assert step == n_rows or step % 128 == 0 or n_rows == 0
    # as few chunks as there can be of whole tiles, and no short one at the end but by less than a tile a chunk
    chunks = -(-n_rows // step)
    assert chunks == -(-n_rows // (most // 128 * 128))
    assert n_rows - (chunks - 1) * step >= step - 128 * chunks
