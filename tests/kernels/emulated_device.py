"""The Python side of the CUDA backends on the CPU: emulated kernels (cuda_emulation/) in place of the compiled ones."""

from types import SimpleNamespace

import torch

from saerl_fast.kernels import native, pool_cuda, scores_cuda, threshold_cuda, topk_cuda
from tests.kernels import emulated


def _as_c(value):
    """Numbers as the C functions take them: addresses, sizes and strides are 64 bits wide, flags are int."""
    return int(value) if isinstance(value, bool) else emulated.size(value)


def _called(library, name):
    def call(*arguments):
        # the last argument is the stream, the one before it the device, an int
        *rest, device, stream = map(_as_c, arguments)
        assert getattr(library, f"saerl_{name}")(*rest, int(device.value), stream) == 0

    return call


def libraries(folder):
    """The functions of the compiled module, by name."""
    select = emulated.compiled("topk_select", folder)
    threshold = emulated.compiled("threshold_select", folder)
    gather = emulated.compiled("gather_rows", folder)
    return {
        "topk_select": select,
        "topk_finish": select,
        "threshold_count": threshold,
        "threshold_write": threshold,
        "gather_rows": gather,
        "segment_pool": emulated.compiled("segment_pool", folder),
    }


def use(monkeypatch, by_name):
    """Let the CUDA backends run on CPU tensors, through the emulation."""
    module = SimpleNamespace(cuda=True, cuda_max_k=512, cuda_max_groups=2048)
    for name, library in by_name.items():
        setattr(module, f"{name}_cuda", _called(library, name))
    monkeypatch.setattr(native, "module", lambda: module)
    monkeypatch.setattr(scores_cuda, "half_product", _half_product)
    for user in (pool_cuda, scores_cuda, threshold_cuda, topk_cuda):
        monkeypatch.setattr(user, "queue_of", lambda _: (0, 0))


def _half_product(x, w, scores):
    torch.mm(x.float(), w.float().T, out=scores)
