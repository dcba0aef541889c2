"""Sixteen threads that call every kernel at once get the bits of one after the other: no scratch is shared."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

from tests.nightly.kernel_calls import digest, kernel_calls
from tests.nightly.sizes import daily_and_nightly

CALLS = kernel_calls()
THREADS = 16


@daily_and_nightly("calls", 25, 1_000)
def test_sixteen_threads(calls, threads, record_property):
    threads(1)
    wanted = {name: digest(call()) for name, call in CALLS.items()}
    begun = threading.Barrier(THREADS)

    def work(number):
        generator = random.Random(number)
        begun.wait()
        names = generator.choices(list(CALLS), k=calls)
        return [name for name in names if digest(CALLS[name]()) != wanted[name]]

    with ThreadPoolExecutor(THREADS) as pool:
        assert [wrong for found in pool.map(work, range(THREADS)) for wrong in found] == []
    record_property("runs", THREADS * calls)
