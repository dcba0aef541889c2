"""topk_encode as torch sees it: schema, fake tensors, compile, gradients. decode: gradients."""

import pytest
import torch

from saerl_fast import ops
from saerl_fast.errors import InputError
from saerl_fast.ops import CsrRows, TopKCodes
from tests.op_table import OPERATIONS, csr_rows, encoder, topk_codes

TOPK_SAMPLES = OPERATIONS["topk_encode"].samples


@pytest.mark.parametrize("sample", TOPK_SAMPLES[:6], ids=lambda sample: sample.name)
def test_opcheck(sample):
    given = sample.make()
    names = ("x", "w_enc", "b_enc", "k", "b_dec", "scale", "row_index", "relu")
    arguments = [given.get(name, True if name == "relu" else None) for name in names]
    result = torch.library.opcheck(torch.ops.saerl_fast.topk_encode.default, (*arguments, None))
    assert set(result.values()) == {"SUCCESS"}
    assert len(result) == 4


def test_compiles_whole_and_once_for_all_batch_sizes():
    compiled_for = []

    def count(graph, inputs):
        compiled_for.append(inputs)
        return graph.forward

    torch._dynamo.reset()
    rest = encoder(1, 16, 100, k=7)
    rest.pop("x")

    @torch.compile(fullgraph=True, backend=count)
    def encode(x):
        return ops.topk_encode(2 * x, **rest).values + 1

    for n_rows in range(2, 52):
        x = torch.full((n_rows, 16), 3.0)
        assert torch.equal(encode(x), ops.topk_encode(2 * x, **rest).values + 1)
    assert len(compiled_for) <= 2


def test_runs_in_inference_mode():
    with torch.inference_mode():
        assert ops.topk_encode(**TOPK_SAMPLES[0].make()).values.shape == (9, 7)


def test_a_gradient_through_the_encoder_raises():
    arguments = TOPK_SAMPLES[0].make()
    arguments["w_enc"].requires_grad_()
    with pytest.raises(RuntimeError, match="no autograd formula"):
        ops.topk_encode(**arguments).values.sum().backward()


@pytest.mark.parametrize("codes", [topk_codes(6, 4, 10), csr_rows(6, 10)], ids=["topk", "csr"])
def test_decode_gradients(codes):
    generator = torch.Generator().manual_seed(0)
    values = (codes.values.double() + 0.1).requires_grad_()
    w_dec = torch.randn(10, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    b_dec = torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True)

    def decoded(values, w_dec, b_dec):
        return ops.decode(codes._replace(values=values), w_dec, b_dec)

    assert torch.autograd.gradcheck(decoded, (values, w_dec, b_dec))


def test_decode_adds_up_a_latent_kept_by_many_rows():
    codes = TopKCodes(torch.ones(5, 1), torch.full((5, 1), 3, dtype=torch.int32))
    w_dec = torch.zeros(4, 2, requires_grad=True)
    ops.decode(codes, w_dec, torch.zeros(2)).sum().backward()
    assert w_dec.grad.tolist() == [[0, 0], [0, 0], [0, 0], [5, 5]]


def test_indices_are_checked_before_they_address_memory():
    huge = CsrRows(torch.tensor([0, 1]), torch.tensor([2**31 - 1]).int(), torch.ones(1))
    with pytest.raises(InputError, match="got values from 2147483647"):
        ops.decode(huge, torch.zeros(4, 2), torch.zeros(2))
