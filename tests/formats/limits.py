"""What it may cost to refuse a hostile file."""

import time
import tracemalloc
from contextlib import contextmanager


@contextmanager
def at_once():
    """A second of the processor's time, and 64 MB, at most."""
    tracemalloc.start()
    started = time.process_time()
    try:
        yield
        taken, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken < 1
    assert peak < 64 << 20
