"""Every operation x backend x sample x layout: the bits of the reference, inputs untouched, errors as promised."""

import functools

import pytest
import torch

from saerl_fast import ops
from saerl_fast.ops.choice import BACKENDS
from saerl_fast.ops.table import TABLE
from tests.op_table import LAYOUTS, OPERATIONS, absent, relaid, tensors

pytestmark = pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")

FIRST_ALONE = ("kmeans_assign", "topk_encode_certified")
"""Of these the second part may differ: a score rounded differently, and how a row is known to be right."""
CASES = [
    pytest.param(op, sample, backend, id=f"{op.name}-{sample.name}-{backend}")
    for op in OPERATIONS.values()
    for sample in op.samples
    for backend in op.backends
    if backend not in sample.not_on
]
MISTAKES = [pytest.param(op, bad, id=f"{op.name}-{bad.name}") for op in OPERATIONS.values() for bad in op.bad_inputs]


def assert_same_bits(got, wanted):
    got, wanted = list(tensors(got)), list(tensors(wanted))
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def needs(backend):
    if reason := absent(backend):
        pytest.skip(reason)


@functools.cache
def in_double_precision(op_name, sample):
    """What the reference makes of the sample in float64."""

    def widened(value):
        return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    wide = {name: widened(value) for name, value in sample.make().items()}
    return OPERATIONS[op_name](wide, backend="reference")


def test_the_table_is_complete():
    assert set(OPERATIONS) == set(TABLE)
    for name, op in OPERATIONS.items():
        assert set(op.backends) == {b for b in BACKENDS if b in TABLE[name]} - {"cuda", *op.elsewhere}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("op", "sample", "backend"), CASES)
def test_bits_and_inputs(op, sample, backend, layout, tmp_path):
    needs(backend)
    wanted = in_double_precision(op.name, sample)
    arguments = relaid(sample.make(), layout, tmp_path)
    with ops.backend(backend):
        got = op(arguments)
    if op.name == "decode":
        got, wanted = got.double(), wanted.double()
    if op.name in FIRST_ALONE:
        got, wanted = got[0], wanted[0]
    assert_same_bits(got, wanted)
    assert_same_bits(arguments, sample.make())


@pytest.mark.parametrize(("op", "bad"), MISTAKES)
def test_mistakes_raise_what_the_table_says(op, bad):
    arguments = op.samples[0].make() | bad.change
    with pytest.raises(bad.error, match=bad.message) as raised:
        op(arguments)
    assert type(raised.value) is bad.error
    assert str(raised.value).startswith(op.name) or bad.name == "unknown_backend"


@pytest.mark.parametrize("backend", OPERATIONS["topk_encode"].backends)
def test_stride_zero(backend):
    needs(backend)
    sample = OPERATIONS["topk_encode"].samples[0].make()
    row = sample["x"][3:4]
    b_enc = torch.tensor(2.0).expand(100)
    spread = ops.topk_encode(row.expand(5, 16), sample["w_enc"], b_enc, 9, backend=backend)
    alone = ops.topk_encode(row, sample["w_enc"], b_enc.clone(), 9, backend="reference")
    assert_same_bits(spread, (alone.values.expand(5, 9), alone.indices.expand(5, 9)))
