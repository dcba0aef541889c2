"""The operations on a device: every compiled backend x sample x layout has the bits of the reference in float64."""

import pytest
import torch

from saerl_fast import ops
from saerl_fast.ops.choice import BACKENDS, Call, refusal
from saerl_fast.ops.table import TABLE
from tests.op_table import LAYOUTS, OPERATIONS, relaid, tensors
from tests.ops.test_op_table import FIRST_ALONE, assert_same_bits, in_double_precision

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")]

CASES = [
    pytest.param(op, sample, backend, id=f"{op.name}-{sample.name}-{backend}")
    for op in OPERATIONS.values()
    for sample in op.samples
    for backend in BACKENDS
    if backend in TABLE[op.name] and not backend.startswith("cpu") and backend not in sample.not_on
]


def on_device(value):
    """The same numbers on the GPU, as awkwardly laid out."""
    if isinstance(value, torch.Tensor):
        spread = torch.empty(value.untyped_storage().nbytes(), dtype=torch.uint8, device="cuda")
        spread.copy_(torch.empty(0, dtype=torch.uint8).set_(value.untyped_storage()))
        whole = torch.empty(0, dtype=value.dtype, device="cuda").set_(spread.untyped_storage())
        return whole.as_strided(value.shape, value.stride(), value.storage_offset())
    if isinstance(value, tuple):
        return type(value)(*(on_device(part) for part in value))
    return value


def needs(op, backend):
    if reason := refusal(TABLE, op.name, backend, Call("cuda", k=1)):
        pytest.skip(reason)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("op", "sample", "backend"), CASES)
def test_bits(op, sample, backend, layout, tmp_path):
    needs(op, backend)
    wanted = in_double_precision(op.name, sample)
    arguments = {name: on_device(value) for name, value in relaid(sample.make(), layout, tmp_path).items()}
    got = op(arguments, backend=backend)
    if op.name == "decode":
        got, wanted = got.double(), wanted.double()
    if op.name in FIRST_ALONE:
        got, wanted = got[0], wanted[0]
    assert_same_bits(tuple(part.cpu() for part in tensors(got)), wanted)


@pytest.mark.parametrize(("op", "sample", "backend"), [case for case in CASES if "plain" in case.id])
def test_a_stream_of_the_callers_own(op, sample, backend):
    """Queued behind slow work on another stream, it sees what that work wrote."""
    needs(op, backend)
    wanted = in_double_precision(op.name, sample)
    arguments = {name: on_device(value) for name, value in sample.make().items()}
    late = {name: value.clone() for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    for value in late.values():
        value.zero_()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), ops.backend(backend):
        torch.cuda._sleep(100_000_000)
        for name, value in late.items():
            value.copy_(arguments[name])
        got = op(arguments | late)
    stream.synchronize()
    if op.name in FIRST_ALONE:
        got, wanted = got[0], wanted[0]
    assert_same_bits(tuple(part.cpu() for part in tensors(got)), wanted)
