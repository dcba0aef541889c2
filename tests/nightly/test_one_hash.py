"""The same input gives the same bits, run after run, with 1, 2, 3 and 7 threads: 3 runs daily, 100 nightly."""

import pytest

from saerl_fast.ops.table import TABLE
from tests.nightly.kernel_calls import ELSEWHERE, digest, kernel_calls
from tests.nightly.sizes import daily_and_nightly
from tests.op_table import absent

CALLS = kernel_calls()
THREADS = (1, 2, 3, 7)


def test_every_kernel_is_called():
    here = {
        (operation, backend)
        for operation, backends in TABLE.items()
        for backend in backends
        if backend not in ELSEWHERE and absent(backend) is None
    }
    assert here == {(name.split("-")[0], name.split("-")[-1]) for name in CALLS}


def test_the_digest_sees_one_bit():
    values, indices = CALLS[next(name for name in CALLS if name.startswith("topk_encode"))]()
    seen = digest((values, indices))
    assert digest((values.clone(), indices.clone())) == seen
    values[3, 5] = values[3, 5].nextafter(values[3, 4])
    assert digest((values, indices)) != seen
    assert digest(values[:0]) != digest(values[:0].double())


@daily_and_nightly("runs", 3, 100)
@pytest.mark.parametrize("name", CALLS)
def test_one_hash(name, runs, threads, record_property):
    seen = set()
    for _ in range(runs):
        for count in THREADS:
            threads(count)
            seen.add(digest(CALLS[name]()))
        assert len(seen) == 1
    record_property("runs", runs)
    record_property("threads", list(THREADS))
