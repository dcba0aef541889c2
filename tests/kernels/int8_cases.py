"""Inputs of the tests of int8 screening, and what their results must be."""

import torch

from saerl_fast import ops
from saerl_fast.bench.data import encoder
from saerl_fast.kernels import int8_screening
from saerl_fast.kernels.screening_counts import screening_counts


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_encoder(rows, width, latents, **more):
    """Random directions and rows, with every term."""
    arguments = {"x": normal(rows, width), "w_enc": normal(latents, width, seed=1), "b_enc": normal(latents, seed=2)}
    return arguments | {"b_dec": normal(width, seed=3), "scale": normal(latents, seed=4).abs() + 0.1} | more


def zipf_encoder(rows, width, latents, **more):
    """Rows that are sums of the encoder's own directions, as activations are."""
    return encoder(rows, width, latents)._asdict() | more


def massive(arguments):
    """A few channels a hundred times as large as the others."""
    x = arguments["x"].clone()
    x[:, [1, 5, 17, 30]] *= 100
    return arguments | {"x": x}


def rotated(rows):
    """Each 64 channels multiplied by a Hadamard matrix over its root, in float64; zeros up to a multiple of 64."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < 64:
        matrix = torch.cat([torch.cat([matrix, matrix], dim=1), torch.cat([matrix, -matrix], dim=1)])
    padded = torch.nn.functional.pad(rows.double(), (0, -rows.shape[1] % 64))
    return (padded.view(len(rows), -1, 64) @ matrix / 8).view(len(rows), -1)


def scores(arguments):
    """h [N, M] in float64."""
    x = arguments["x"].double()
    if arguments.get("b_dec") is not None:
        x = x - arguments["b_dec"].double()
    h = x @ arguments["w_enc"].double().T + arguments["b_enc"].double()
    return h if arguments.get("scale") is None else h * arguments["scale"].double()


def assert_best(codes, h, k):
    """The k largest of h, ties to the lower index; values rounded to float32 once (of sums in another order)."""
    wanted = h.sort(dim=1, descending=True, stable=True)
    assert torch.equal(codes.indices.long(), wanted.indices[:, :k])
    rounded = wanted.values[:, :k].float()
    near = (codes.values.double() - rounded.double()).abs() <= 1e-12 * h.abs().max()
    next_to = [rounded, rounded.nextafter(torch.tensor(torch.inf)), rounded.nextafter(torch.tensor(-torch.inf))]
    assert (near | torch.stack([codes.values == value for value in next_to]).any(dim=0)).all()


def encode(arguments, k, **more):
    return ops.topk_encode(**arguments, k=k, relu=False, backend="cpu_int8", **more)


def whole_rows(call):
    """The result of the call, and how many of its rows were scored whole."""
    before = screening_counts()
    result = call()
    after = screening_counts()
    return result, after.whole_rows - before.whole_rows, after.rows - before.rows


def same(one, other):
    return torch.equal(one.values, other.values) and torch.equal(one.indices, other.indices)


def forget_prepared_weights():
    int8_screening.CACHE.clear()
