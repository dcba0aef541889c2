"""Offsets on both sides of 2^31 and 2^32 elements in every kernel, in sparse files of a few kilobytes.

Cheap enough for every push. The numbers lie where a 32-bit offset would wrap: what it would read is another
place of the file, which holds zeros, or no memory at all.
"""

import numpy as np
import pytest
import torch

from saerl_fast import ops
from saerl_fast.kernels import decode_cpu, kmeans_cpu, native, pool_cpu, sparse_cpu
from saerl_fast.ops import CsrRows, TopKCodes
from tests.op_table import absent, csr_rows, encoder, far_apart, grid, topk_codes

if native.missing():
    pytest.skip(native.missing(), allow_module_level=True)

FAR = (2**31 - 3, 2**31 + 1024, 2**32 + 1024)
SETS = native.module().instruction_sets()


def placed(folder, numbers, first, name):
    """The numbers [n] or [n, k] behind `first` rows of nothing, in a sparse file."""
    shape = (first + len(numbers), *numbers.shape[1:])
    file = folder / name
    with open(file, "wb") as handle:
        handle.truncate(int(np.prod(shape)) * numbers.element_size())
    whole = torch.from_file(str(file), shared=True, size=int(np.prod(shape)), dtype=numbers.dtype).view(shape)
    whole[first:] = numbers
    return whole


def far_rows(folder, rows, first):
    """Sparse rows whose entries begin at `first`."""
    return CsrRows(
        rows.indptr + first,
        placed(folder, rows.indices, first, "indices.bin"),
        placed(folder, rows.values, first, "values.bin"),
    )


def same(got, wanted):
    return all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))


@pytest.mark.parametrize("which", ["x", "w_enc"])
@pytest.mark.parametrize("backend", ["cpu", "cpu_int8"])
def test_rows_of_the_encoder_far_apart(backend, which, tmp_path):
    if reason := absent(backend):
        pytest.skip(reason)
    arguments = encoder(3, 16, 3, k=2)
    wanted = ops.topk_encode(**arguments, backend="reference")
    arguments[which] = far_apart(tmp_path, arguments[which])
    assert same(ops.topk_encode(**arguments, backend=backend), wanted)


def test_rows_of_the_threshold_encoder_far_apart(tmp_path):
    arguments = encoder(3, 16, 40, theta=5.0)
    wanted = ops.threshold_encode(**arguments, backend="reference")
    arguments["x"] = far_apart(tmp_path, arguments["x"])
    assert same(ops.threshold_encode(**arguments, backend="cpu"), wanted)


@pytest.mark.parametrize("isa", SETS)
def test_rows_of_scores_far_apart(isa, tmp_path):
    scores, theta = grid(3, 40), torch.full((40,), 1.0)
    apart = far_apart(tmp_path, scores)
    wanted = native.topk_select(scores, 5, isa=isa)
    assert same(native.topk_select(apart, 5, isa=isa), wanted)
    running, found = native.RunningTopK(3, 5, isa), (torch.empty(3, 5), torch.empty(3, 5, dtype=torch.int32))
    running.absorb(apart, None, None)
    running.finish(*found, relu=False)
    assert same(found, wanted)
    above = native.RunningThreshold(3, isa)
    above.absorb(apart, None, None, theta)
    indices, values = above.finish(torch.empty(3, dtype=torch.int64))
    assert torch.equal(indices.long(), (scores > 1).nonzero()[:, 1])
    assert torch.equal(values, scores[scores > 1])


@pytest.mark.parametrize("isa", SETS)
def test_dense_rows_of_kmeans_far_apart(isa, tmp_path):
    # the stride is handed to the kernel itself: the Python side copies rows that do not lie side by side
    rows, table = grid(7, 50), grid(50, 20, seed=4)
    apart, at = far_apart(tmp_path, rows), native.address
    centroids = table.T.contiguous()
    found = []
    for x in (rows, apart):
        labels, score, sums = torch.empty(7, dtype=torch.int32), torch.empty(7), torch.empty(20, 50)
        counts = torch.empty(20, dtype=torch.int64)
        native.module().nearest_dense(
            at(x), 7, 50, x.stride(0), at(centroids), 20, False, at(labels), at(score), 1, isa
        )
        native.module().sum_dense(at(x), 7, 50, x.stride(0), at(labels), 20, at(sums), at(counts), 1, isa)
        found.append((labels, score, sums, counts))
    assert same(found[1], found[0])
    far = (rows[:, None] - table.T).double().square().sum(dim=2)
    assert torch.equal(found[0][1].double(), far.min(dim=1).values)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("first", FAR)
def test_entries_far_into_sparse_rows(first, isa, tmp_path):
    rows = csr_rows(9, 50)
    far = far_rows(tmp_path, rows, first)
    table = grid(50, 20, seed=4)
    b_dec = grid(20, seed=5)
    assert torch.equal(decode_cpu.summed(*far, table, b_dec, isa), decode_cpu.summed(*rows, table, b_dec, isa))
    assert torch.equal(sparse_cpu.project(far, table, isa), sparse_cpu.project(rows, table, isa))
    weighted = [sparse_cpu.project_weighted(given, table, torch.arange(50), "sqrt", isa) for given in (far, rows)]
    assert torch.equal(*weighted)
    for metric in ("euclidean", "cosine"):
        wanted = kmeans_cpu.assign(rows, table.T, metric, isa)
        assert same(kmeans_cpu.assign(far, table.T, metric, isa), wanted)
    labels = torch.arange(9, dtype=torch.int32) % 4
    assert same(kmeans_cpu.update(far, labels, 4, 50, isa), kmeans_cpu.update(rows, labels, 4, 50, isa))
    offsets = torch.tensor([0, 4, 4, 9])
    for mode in ("mean", "max", "sum", "last", "count"):
        wanted = pool_cpu.segment_pool(rows, offsets, 50, mode, isa)
        assert same(pool_cpu.segment_pool(far, offsets, 50, mode, isa), wanted)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("first", FAR)
def test_tokens_far_into_topk_codes(first, isa, tmp_path):
    k, token = 4, first // 4
    codes = topk_codes(9, k, 50)
    far = TopKCodes(
        placed(tmp_path, codes.values, token, "values.bin"), placed(tmp_path, codes.indices, token, "indices.bin")
    )
    offsets = torch.tensor([0, 4, 4, 9])
    for mode in ("mean", "max", "sum", "last", "count"):
        wanted = pool_cpu.segment_pool(codes, offsets, 50, mode, isa)
        assert same(pool_cpu.segment_pool(far, offsets + token, 50, mode, isa), wanted)


def test_the_numbers_do_lie_far_away(tmp_path):
    values = far_rows(tmp_path, csr_rows(9, 50), FAR[1]).values
    assert values.numel() > 2**31
    assert values.is_contiguous()
    # a sparse file: nearly nothing of it is on the disk
    assert (tmp_path / "values.bin").stat().st_blocks * 512 < 2**20
