"""flash-kmeans as a baseline: called as it is meant to be, proved first, and left out with a reason otherwise."""

import sys
from types import ModuleType

import pytest
import torch

from saerl_fast.bench import flash_kmeans
from saerl_fast.bench.gpu_suite import EFFORT, ROWS, run_gpu_row

CPU = torch.device("cpu")


def nearest(x, centroids, squares):
    assert x.shape[0] == centroids.shape[0] == 1
    torch.testing.assert_close(squares, x.square().sum(dim=-1))
    distance = squares[..., None] - 2 * x @ centroids.transpose(1, 2) + centroids.square().sum(dim=-1)[:, None]
    return distance.argmin(dim=-1).int()


def means(x, labels, centroids):
    sums = torch.zeros_like(centroids[0]).index_add_(0, labels[0], x[0])
    number = labels[0].bincount(minlength=len(sums))[:, None]
    return torch.where(number > 0, sums / number.clamp(min=1), centroids[0])[None]


@pytest.fixture
def installed(monkeypatch):
    """A package of that name with these two functions, on any device."""

    def put(assign=nearest, update=means):
        package = ModuleType("flash_kmeans")
        parts = {"assign_euclid_triton": ("euclid_assign_triton", assign)}
        parts["centroid_update_triton"] = ("triton_centroid_update_sorted_euclid", update)
        package.__path__ = []
        monkeypatch.setitem(sys.modules, "flash_kmeans", package)
        for name, (function, body) in parts.items():
            module = ModuleType(f"flash_kmeans.{name}")
            setattr(module, function, body)
            monkeypatch.setitem(sys.modules, module.__name__, module)
        missing = flash_kmeans.missing
        monkeypatch.setattr(flash_kmeans, "missing", lambda _: missing(torch.device("cuda")))

    return put


def row_of_the_suite():
    return run_gpu_row("kmeans_iter_dense", ROWS["kmeans_iter_dense"].tiny[0], EFFORT["tiny"], CPU)


def test_it_takes_part_where_it_is_installed_and_right(installed):
    installed()
    result = row_of_the_suite()
    assert result["flash_kmeans"] == "proved"
    assert "flash-kmeans" in result["all_baselines_ms"]


def test_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_kmeans", None)
    assert flash_kmeans.missing(torch.device("cuda")) == "not installed"
    result = row_of_the_suite()
    assert result["flash_kmeans"] == "runs on CUDA only"
    assert "flash-kmeans" not in result["all_baselines_ms"]
    assert result["exact"] is True


def test_one_that_does_not_import_is_a_reason(installed, monkeypatch):
    installed()
    monkeypatch.delattr(sys.modules["flash_kmeans.assign_euclid_triton"], "euclid_assign_triton")
    assert row_of_the_suite()["flash_kmeans"].startswith("cannot be imported: ")


def no_shared_memory(x, centroids, squares):
    raise ArithmeticError("out of resources")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"assign": lambda *a: (nearest(*a) + 1) % 5}, "rows are not with their nearest centroid"),
        ({"assign": lambda *a: nearest(*a) + 5, "update": lambda *a: a[2]}, "a label names no cluster"),
        ({"update": lambda *a: means(*a) * 1.001}, "a mean is off by"),
        ({"update": lambda *a: torch.zeros_like(a[2])}, "a mean is off by"),
        ({"update": lambda *a: means(*a)[:, 1:]}, "wanted 60 labels and means"),
        ({"assign": no_shared_memory}, "ArithmeticError: out of resources"),
    ],
)
def test_a_wrong_one_gets_no_time_and_ours_does(installed, broken, reason):
    installed(**broken)
    result = row_of_the_suite()
    assert result["flash_kmeans"].startswith("left out, ")
    assert reason in result["flash_kmeans"]
    assert "flash-kmeans" not in result["all_baselines_ms"]
    assert result["exact"] is True


def test_what_tf32_rounds_is_right_and_what_it_does_not_is_wrong():
    """Labels of products cut to ten bits pass; those of products cut to two do not."""
    generator = torch.Generator().manual_seed(3)
    centroids = torch.randn(50, 64, generator=generator)
    # between two of them, nearly
    x = (centroids.repeat(40, 1) + centroids.repeat_interleave(40, dim=0)) / 2
    x += 0.002 * torch.randn(2000, 64, generator=generator)

    def cut(values, bits):
        return (values.view(torch.int32) & -(1 << (23 - bits))).view(torch.float32)

    def labels(bits):
        return (centroids.square().sum(dim=1) - 2 * (cut(x, bits).double() @ cut(centroids, bits).double().T)).argmin(1)

    rows = torch.arange(len(x))
    exact = torch.cdist(x.double(), centroids.double()).argmin(dim=1)
    assert (labels(10) != exact).any()
    for bits, right in ((10, True), (2, False)):
        found = labels(bits)
        result = (found, means(x[None], found[None], centroids[None])[0])
        assert (flash_kmeans.wrong(result, x, centroids, rows) is None) == right


def test_a_cluster_without_rows_keeps_its_centroid():
    x, centroids = torch.eye(3), torch.cat([torch.eye(3), torch.full((1, 3), 50.0)])
    result = (torch.arange(3, dtype=torch.int32), centroids.clone())
    assert flash_kmeans.wrong(result, x, centroids, torch.arange(3)) is None
    result[1][3] = 0
    assert "a mean is off" in flash_kmeans.wrong(result, x, centroids, torch.arange(3))
