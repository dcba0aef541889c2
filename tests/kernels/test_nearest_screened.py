"""Assignment behind a screen, in Triton's interpreter: what it leaves open, and what it must never decide."""

import pytest
import torch

from saerl_fast import ops
from saerl_fast.errors import InputError, NonFiniteError
from saerl_fast.kernels import triton_runtime
from saerl_fast.ops import CsrRows
from tests.op_table import csr_rows, dense

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


@pytest.fixture
def screened(monkeypatch):
    """Every assignment goes through the screen; the calls' queues, by length."""
    if reason := triton_runtime.refuses("cpu"):
        pytest.skip(reason)
    from saerl_fast.kernels import nearest_screened

    lengths = []
    real = nearest_screened.screened_nearest
    monkeypatch.setattr(nearest_screened, "pays", lambda *_: True)
    monkeypatch.setattr(
        nearest_screened, "screened_nearest", lambda *given: lengths.append(int(real(*given))) or lengths[-1]
    )
    return lengths


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sparse_rows(n_rows, n_latents, share=0.3):
    rows = csr_rows(n_rows, n_latents, share=share)
    return rows._replace(values=normal(len(rows.values), seed=3))


def distances(x, centroids, metric="euclidean"):
    x, centroids = x.double(), centroids.double()
    if metric == "cosine":
        unit = torch.nn.functional.normalize
        return 1 - unit(x) @ unit(centroids).T
    return centroids.square().sum(dim=1) - 2 * x @ centroids.T


@pytest.mark.parametrize(
    ("form", "metric", "n_clusters"),
    [
        *((form, "euclidean", 40) for form in ("dense", "bfloat16", "transposed", "csr")),
        *((form, "cosine", 40) for form in ("dense", "csr")),
        *((form, "euclidean", 150) for form in ("dense", "csr")),
    ],
)
def test_labels_are_those_of_float64_and_scores_as_near_as_torch_s(screened, form, metric, n_clusters):
    # the interpreter takes its time over sparse rows
    n_rows = 25 if form == "csr" else 140
    rows = sparse_rows(n_rows, 70) if form == "csr" else normal(n_rows, 70, seed=3)
    rows = rows.bfloat16() if form == "bfloat16" else rows.T.contiguous().T if form == "transposed" else rows
    x = dense(rows, 70) if form == "csr" else rows.double()
    centroids = normal(n_clusters, 70, seed=4)
    labels, score = ops.kmeans_assign(rows, centroids, metric=metric, backend="triton")
    far = distances(x, centroids, metric)
    best = far.topk(2, largest=False).values
    clear = best[:, 1] - best[:, 0] > 1e-5
    assert clear.sum() > (18 if form == "csr" else 120)  # every fifth sparse row is empty
    assert torch.equal(labels[clear].long(), far.argmin(dim=1)[clear])
    true = best[:, 0] if metric == "cosine" else (best[:, 0] + x.square().sum(dim=1)).clamp(min=0)
    plain = ops.kmeans_assign(rows, centroids, metric=metric, backend="reference")[1]
    assert (score - true).abs().max() <= 2 * (plain - true).abs().max()
    # a few are left open, and not all
    (length,) = screened
    assert length < 0.6 * n_rows
    again = ops.kmeans_assign(rows, centroids, metric=metric, backend="triton")
    assert torch.equal(labels, again[0])
    assert torch.equal(score, again[1])


@pytest.mark.parametrize("form", ["dense", "csr"])
def test_what_rounding_would_get_wrong_is_left_open(screened, form):
    """Rows beside the middle of two centroids: nearer to one by less than the rounded products can tell."""
    from saerl_fast.kernels import kmeans_triton, nearest_screened

    centroids = normal(64, 48, seed=4)
    first, second = centroids[::2], centroids[1::2]
    toward = torch.where(torch.arange(32) % 2 == 0, 1.0, -1.0)[:, None]
    x = (first + second) / 2 + 3e-5 * toward * (first - second)
    far = distances(x, centroids)
    best = far.topk(2, largest=False).values
    # float32 tells them apart
    sure = best[:, 1] - best[:, 0] > 2e-4
    rows = x
    if form == "csr":
        rows = CsrRows(torch.arange(33) * 48, torch.arange(48).repeat(32).int(), x.reshape(-1).contiguous())
    labels, _ = ops.kmeans_assign(rows, centroids, backend="triton")
    assert torch.equal(labels[sure].long(), far.argmin(dim=1)[sure])
    centres = kmeans_triton.centres_of(centroids, "euclidean")
    screen = nearest_screened.screen_of(centres, torch.float32 if form == "dense" else torch.bfloat16)
    given = x if form == "dense" else x.bfloat16()
    guess = nearest_screened._screened(given, screen, centres)[2][0]
    wrong = guess.long() != far.argmin(dim=1)
    assert (wrong & sure).any()
    assert screened[0] >= int(wrong.sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_bound_holds_for_every_pair(dtype, screened):
    """|d - d^| <= E, with the operands rounded and the limits of the screen; and it is no idle one."""
    from saerl_fast.kernels import kmeans_triton, nearest_screened

    x, centroids = 100 * normal(60, 200, seed=1) ** 3, normal(64, 200, seed=2) ** 3
    centres = kmeans_triton.centres_of(centroids, "euclidean")
    screen = nearest_screened.screen_of(centres, dtype)
    rounded = ((x.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32) if dtype == torch.float32 else x.bfloat16()
    near = centres.bias - 2 * (rounded.float() @ screen.rounded.float().T)
    longest, rounding, offset = screen.limits.double()
    size, missed = x.double().norm(dim=1), (x.double() - rounded.double()).norm(dim=1)
    bound = 2 * (missed * longest + size * rounding + screen.slack * (size + missed) * longest)
    bound += 2.0**-22 * (offset + 2 * size * longest)
    off = (near.double() - distances(x, centroids)).abs().amax(dim=1)
    assert (off <= bound).all()
    assert (off > bound / 60).all()


def test_ties_go_to_the_lower_cluster_within_tiles_and_across(screened):
    centroids = normal(1, 40, seed=5).expand(140, 40).contiguous()
    centroids[:7] += 1
    for rows in (normal(20, 40), sparse_rows(4, 40)):
        labels, _ = ops.kmeans_assign(rows, centroids, metric="cosine", backend="triton")
        x = rows if isinstance(rows, torch.Tensor) else dense(rows, 40)
        wanted = distances(x, centroids, "cosine")
        assert torch.equal(labels.long(), torch.where(wanted[:, 0] <= wanted[:, 7], 0, 7) * (x.abs().sum(dim=1) > 0))
    assert screened == [20, 4]


def test_rows_that_no_bound_holds_for(screened):
    """Indices that do not ascend, or come twice: gathered, not made dense, where one would be lost."""
    rows = CsrRows(
        torch.tensor([0, 3, 3, 6, 8]),
        torch.tensor([30, 2, 7, 4, 4, 9, 1, 39]).int(),
        torch.tensor([1.0, -2.0, 3.0, 5.0, 6.0, -1.0, 2.0, 2.0]),
    )
    centroids = normal(50, 40, seed=6)
    labels, score = ops.kmeans_assign(rows, centroids, backend="triton")
    x = dense(rows, 40)
    x[2, 4] = 11
    far = distances(x, centroids)
    assert torch.equal(labels.long(), far.argmin(dim=1))
    once = torch.tensor([0, 1, 3])
    torch.testing.assert_close(score[once], (far.amin(dim=1) + x.square().sum(dim=1)).clamp(min=0).float()[once])
    # the first and the third, and the empty row only where two centroids are as short
    assert 2 <= screened[0] <= 3


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("form", ["dense", "csr"])
def test_what_is_no_number_is_refused(screened, form, bad):
    rows, centroids = (normal(9, 40), sparse_rows(9, 40)), normal(60, 40)
    rows = rows[form == "csr"]
    values = rows if form == "dense" else rows.values
    values.view(-1)[0] = bad
    with pytest.raises(NonFiniteError, match=r"1 of 9 rows .*first: row 0"):
        ops.kmeans_assign(rows, centroids, backend="triton")
    values.view(-1)[0] = 1
    centroids[3, 7] = bad
    with pytest.raises(NonFiniteError, match="9 of 9 rows have a NaN distance"):
        ops.kmeans_assign(rows, centroids, backend="triton")


def test_bad_indices_and_offsets_read_and_write_nothing_else(screened):
    rows = sparse_rows(9, 40)
    for change in ({"indices": 40}, {"indices": -1}, {"indptr": 10_000}):
        ((name, value),) = change.items()
        part = getattr(rows, name).clone()
        part[2] = value
        with pytest.raises(InputError, match=f"rows.{name} must"):
            ops.kmeans_assign(rows._replace(**{name: part}), normal(50, 40), backend="triton")


@pytest.mark.parametrize("form", ["dense", "csr"])
def test_chunks_change_nothing(screened, form, monkeypatch):
    from saerl_fast.kernels import nearest_screened

    rows = normal(300, 40) if form == "dense" else sparse_rows(30, 40, share=0.1)
    centroids = normal(130 if form == "dense" else 40, 40, seed=1)
    whole = ops.kmeans_assign(rows, centroids, backend="triton")
    monkeypatch.setattr(nearest_screened, "CHUNK_NUMBERS", 13 * 40)
    monkeypatch.setattr(nearest_screened, "TILE_NUMBERS", 2 * 257)
    parts = ops.kmeans_assign(rows, centroids, backend="triton")
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))
    assert screened[0] == screened[1]
    assert len(nearest_screened._chunks(300, 128)) == len(nearest_screened._chunks(30, 13)) == 3


def test_many_channels_are_added_up_in_runs(screened, monkeypatch):
    from saerl_fast.kernels import nearest_screened

    monkeypatch.setattr(nearest_screened, "RUN", 64)
    rows, centroids = sparse_rows(12, 300), normal(40, 300, seed=1)
    labels, _ = ops.kmeans_assign(rows, centroids, backend="triton")
    assert torch.equal(labels.long(), distances(dense(rows, 300), centroids).argmin(dim=1))


@pytest.mark.parametrize(
    ("density", "clusters", "screen"),
    [(0.03, 64, False), (0.03, 256, True), (0.10, 64, True), (0.10, 256, True), (0.001, 256, False), (0.2, 16, False)],
)
def test_sparse_rows_are_made_dense_where_the_floors_say_so(density, clusters, screen):
    from saerl_fast.kernels import nearest_screened

    n_entries = int(1000 * 24576 * density)
    nothing = torch.empty(1).expand(n_entries)
    rows = CsrRows(torch.empty(1001), nothing, nothing)
    assert nearest_screened.pays(rows, 24576, clusters) == screen
    assert nearest_screened.pays(torch.empty(1, 256), 256, clusters) == (clusters >= 32)


@pytest.mark.gpu
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize(("form", "n_latents"), [("dense", 256), ("bfloat16", 256), ("csr", 3000), ("csr", 24576)])
def test_labels_on_a_device_are_those_of_float64(form, n_latents, metric):
    from saerl_fast.kernels import kmeans_triton, nearest_screened

    if reason := triton_runtime.refuses("cuda"):
        pytest.skip(reason)
    middles = normal(300, n_latents, seed=1)
    if form == "csr":
        middles = middles.relu() * (normal(300, n_latents, seed=2) > 1)
    x = middles.repeat(11, 1) + normal(3300, n_latents, seed=3) * (middles.repeat(11, 1) != 0)
    centroids = (middles + 0.1 * normal(300, n_latents, seed=4)).cuda()
    rows = x.bfloat16() if form == "bfloat16" else x
    exact = rows.double()
    if form == "csr":
        compressed = x.to_sparse_csr()
        parts = (compressed.crow_indices(), compressed.col_indices().int(), compressed.values())
        rows = CsrRows(*(part.cuda() for part in parts))
    else:
        rows = rows.cuda()
    assert nearest_screened.pays(rows, n_latents, 300)
    labels, score = ops.kmeans_assign(rows, centroids, metric=metric, backend="triton")
    far = distances(exact.cuda(), centroids, metric)
    best = far.topk(2, largest=False).values
    size = 1 if metric == "cosine" else exact.cuda().norm(dim=1) * centroids.double().norm(dim=1).max()
    clear = best[:, 1] - best[:, 0] > 4e-6 * size
    assert clear.float().mean() > 0.99
    assert torch.equal(labels[clear].long(), far.argmin(dim=1)[clear])
    centres = kmeans_triton.centres_of(centroids, metric)
    found = kmeans_triton.nearest(rows, centres)
    assert int(nearest_screened.screened_nearest(rows, centres, found)) < 0.2 * len(labels)
    again = ops.kmeans_assign(rows, centroids, metric=metric, backend="triton")
    assert torch.equal(labels, again[0])
    assert torch.equal(score, again[1])
