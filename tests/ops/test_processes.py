"""Threads, forks and offsets past 2^31: what depends on the process rather than on the numbers."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from saerl_fast import ops
from tests.op_table import OPERATIONS, absent, encoder, far_apart

BACKENDS = OPERATIONS["topk_encode"].backends
FORKS = 20


def random_encoder():
    generator = torch.Generator().manual_seed(0)
    make = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    return {"x": make(1300, 96), "w_enc": make(3000, 96), "b_enc": make(3000), "k": 24}


@pytest.mark.parametrize("backend", BACKENDS)
def test_thread_count_changes_no_bits(backend, threads):
    if reason := absent(backend):
        pytest.skip(reason)
    arguments = random_encoder()
    results = []
    for count in (1, 2, 3, 7):
        threads(count)
        results.append(ops.topk_encode(**arguments, backend=backend))
    for other in results[1:]:
        assert torch.equal(other.values, results[0].values)
        assert torch.equal(other.indices, results[0].indices)


def test_calls_from_many_threads_at_once():
    arguments = random_encoder()
    wanted = ops.topk_encode(**arguments)
    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(lambda _: ops.topk_encode(**arguments), range(16)):
            assert torch.equal(got.indices, wanted.indices)
            assert torch.equal(got.values, wanted.values)


FORKING = f"""
import os, torch
from saerl_fast import ops
torch.set_num_threads(4)
x, w, b = torch.randn(600, 64), torch.randn(512, 64), torch.zeros(512)
wanted = ops.topk_encode(x, w, b, 9)
children = []
for _ in range({FORKS}):
    child = os.fork()
    if child == 0:
        got = ops.topk_encode(x, w, b, 9)
        os._exit(0 if torch.equal(got.indices, wanted.indices) else 1)
    children.append(child)
print([os.waitpid(child, 0)[1] for child in children])
"""


def test_forked_children_do_not_hang():
    start = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-c", FORKING],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert run.stdout.strip() == str([0] * FORKS), run.stderr
    assert run.stderr.count("set to one thread") == FORKS
    assert time.monotonic() - start < 100


@pytest.mark.parametrize("backend", BACKENDS)
def test_row_strides_past_2_to_31(backend, tmp_path):
    if reason := absent(backend):
        pytest.skip(reason)
    arguments = encoder(3, 16, 40, k=5)
    wanted = ops.topk_encode(**arguments, backend="reference")
    arguments["x"] = far_apart(tmp_path, arguments["x"])
    got = ops.topk_encode(**arguments, backend=backend)
    assert torch.equal(got.values, wanted.values)
    assert torch.equal(got.indices, wanted.indices)


def test_column_strides_past_2_to_31(tmp_path):
    arguments = encoder(3, 3, 40, k=5)
    wanted = ops.topk_encode(**arguments)
    arguments["x"] = far_apart(tmp_path, arguments["x"].T).T
    got = ops.topk_encode(**arguments)
    assert torch.equal(got.values, wanted.values)
    assert torch.equal(got.indices, wanted.indices)
