"""Blocks compiled by inductor, and a C++ compiler behind it: by the rule of twice the error, one set of graphs."""

import pytest
import torch
from torch._dynamo.utils import counters

from saerl_fast.extract.compiling import choose_forward
from tests.extract.test_compiling import OWN, PACKED, PADDED, assert_twice, graphs
from tests.extract.test_packing import made, reader_of

pytestmark = pytest.mark.nightly


@pytest.mark.parametrize(
    ("family", "layout"),
    [("qwen2", PADDED), ("gpt2", PADDED), ("bert", PADDED), ("qwen2", PACKED), ("qwen2", OWN)],
    ids=str,
)
def test_compiled_blocks_keep_to_twice_the_error(family, layout):
    torch._dynamo.reset()
    counters.clear()
    reader = reader_of(made(family))
    forward = choose_forward(reader, layout, "on")
    made_first = graphs()
    assert made_first == {PADDED: 3, OWN: 2, PACKED: 1}[layout]
    assert_twice(reader, layout, forward)
    assert graphs() == made_first
    torch._dynamo.reset()
