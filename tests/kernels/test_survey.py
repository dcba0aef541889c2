"""One look at every entry: order, finiteness, zeros and counts, against the same asked of numpy."""

import numpy as np
import pytest
import torch

from saerl_fast.kernels import native, sparse_cpu
from saerl_fast.ops import CsrRows
from tests.op_table import csr_rows

ISAS = native.module().instruction_sets() if native.missing() is None else []
pytestmark = pytest.mark.skipif(not ISAS, reason="no compiled module")
ROWS, WIDTH = 300, 190


@pytest.fixture
def rows():
    found = csr_rows(ROWS, WIDTH, share=0.2)
    return found._replace(values=torch.randn(len(found.values), generator=torch.Generator().manual_seed(1)))


def having(csr: CsrRows) -> list[int]:
    return np.bincount(csr.indices[csr.values != 0].numpy(), minlength=WIDTH).tolist()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("zeros", [0, 1, 7])
def test_counts(rows, zeros, threads, isa, monkeypatch):
    monkeypatch.setattr(native, "threads", lambda: threads)
    values = rows.values.clone()
    if zeros:
        values[::zeros] = 0
        values[::2] *= -1  # a negative zero is one too
    csr = rows._replace(values=values)
    found = sparse_cpu.survey(csr, WIDTH, isa)
    assert found[1:] == (True, True, zeros > 0)
    assert found.having.tolist() == having(csr)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.4e38, 1e-45])
def test_every_place_is_looked_at(isa, value):
    # each place of a vector, and what is left behind the last one
    lengths = torch.tensor([1, 7, 8, 9, 15, 16, 17, 33])
    indptr = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    columns = torch.cat([torch.arange(n, dtype=torch.int32) for n in lengths.tolist()])
    for place in range(int(indptr[-1])):
        values = torch.ones(len(columns))
        values[place] = value
        found = sparse_cpu.survey(CsrRows(indptr, columns, values), 40, isa)
        assert found[1:] == (True, bool(np.isfinite(value)), False)
    values[place] = 0
    assert sparse_cpu.survey(CsrRows(indptr, columns, values), 40, isa).zeros


@pytest.mark.parametrize("isa", ISAS)
def test_order_and_bounds(isa):
    columns = list(range(3, 40))
    for place in range(len(columns) - 1):
        for wrong in (columns[place + 1], columns[place + 1] + 1):  # twice, falling
            given = torch.tensor([*columns[:place], wrong, *columns[place + 1 :]], dtype=torch.int32)
            csr = CsrRows(torch.tensor([0, len(columns)]), given, torch.ones(len(columns)))
            assert not sparse_cpu.survey(csr, 60, isa).ascending
    for first, last in ((-1, 39), (-(2**31), 39), (3, 40), (3, 2**31 - 1)):
        given = torch.tensor([first, *range(4, 39), last], dtype=torch.int32)
        csr = CsrRows(torch.tensor([0, 37]), given, torch.ones(37))
        assert not sparse_cpu.survey(csr, 40, isa).ascending


def test_a_row_may_begin_below_the_end_of_the_one_before():
    csr = CsrRows(torch.tensor([0, 0, 2, 3, 3]), torch.tensor([1, 5, 0], dtype=torch.int32), torch.ones(3))
    assert sparse_cpu.survey(csr, 6).having.tolist() == [1, 1, 0, 0, 0, 1]


def test_no_rows():
    none = CsrRows(torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int32), torch.zeros(0))
    found = sparse_cpu.survey(none, 5)
    assert found.having.tolist() == [0] * 5
    assert found[1:] == (True, True, False)
