"""While the batches of a shard run, nothing asks a tensor for its numbers: on a GPU that would wait for the device."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import saerl_fast
from saerl_fast import ops
from saerl_fast.extract import settings, shard
from saerl_fast.extract.packing import OWN_MASKS, Layout
from saerl_fast.extract.shard import _featurize_batch
from tests import tiny
from tests.extract.test_packing import made

READING_OPS = (
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "nonzero_static", "masked_select", "_unique2", "unique_dim",
    "unique_consecutive", "bincount", "_is_all_true", "_is_any_true", "allclose",
)  # fmt: skip
READING_METHODS = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__")


class HostRead(AssertionError):
    pass


@pytest.fixture(autouse=True)
def _as_on_a_device(monkeypatch):
    """No batch waits for others to be encoded with."""
    monkeypatch.setattr("saerl_fast.extract.held.HELD_TOKENS", 0)


class Guard(TorchDispatchMode):
    """Raises HostRead where an operation's result depends on a tensor's numbers in a way that the host must know."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        at = args[1] if name in ("index", "index_put", "index_put_") else ()
        boolean = any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in at)
        sized = (
            name == "repeat_interleave"
            and function._overloadname != "self_int"
            and (kwargs or {}).get("output_size") is None
        )
        if name in READING_OPS or boolean or sized:
            raise HostRead(name)
        return function(*args, **(kwargs or {}))


@contextmanager
def no_host_reads(monkeypatch):
    def forbid(name):
        def method(self, *args, **kwargs):
            raise HostRead(f"Tensor.{name}")

        return method

    with monkeypatch.context() as patched, Guard():
        for name in READING_METHODS:
            patched.setattr(torch.Tensor, name, forbid(name))
        yield


def guard_batches(monkeypatch):
    """Every batch of a shard runs under the guard, but for the inside of our operations: on a CPU they may read."""
    batches = []

    def guarded(*args):
        batches.append(args[0])
        with no_host_reads(monkeypatch):
            _featurize_batch(*args)

    monkeypatch.setattr(shard, "_featurize_batch", guarded)
    for name in ("topk_encode", "segment_pool_spaced"):
        monkeypatch.setattr(ops, name, free(getattr(ops, name)))
    return batches


def free(operation):
    """The operation, with what the guard forbids."""

    def call(*args, **kwargs):
        with pytest.MonkeyPatch.context() as patched:
            for name, method in ORIGINAL.items():
                patched.setattr(torch.Tensor, name, method)
            with torch.utils._python_dispatch._disable_current_modes():
                return operation(*args, **kwargs)

    return call


ORIGINAL = {name: getattr(torch.Tensor, name) for name in READING_METHODS}


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "gpt2", "bert"])
def test_no_batch_of_a_packed_shard_reads_a_number(monkeypatch, family):
    texts = tiny.texts(30)
    call = {"tokenizer": tiny.tokenizer(), "tokens_per_batch": 120, "packing": "on", "keep_hidden": True}
    call |= {"layer": 2, "progress": False}
    wanted = saerl_fast.featurize(texts, made(family), tiny.sae(metadata={}), **call)
    batches = guard_batches(monkeypatch)
    found = saerl_fast.featurize(texts, made(family), tiny.sae(metadata={}), **call)
    assert len(batches) > 2
    np.testing.assert_array_equal(found.values, wanted.values)
    np.testing.assert_array_equal(found.hidden, wanted.hidden)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ["qwen2", "gemma2", "gpt2", "bert"])
def test_no_batch_of_a_padded_shard_reads_a_number(monkeypatch, family, side):
    """As padded batches are on a device."""
    if family == "bert" and side == "left":
        pytest.skip("takes no positions")
    monkeypatch.setattr(settings, "choose_layout", lambda *_: Layout(OWN_MASKS, ""))
    call = {"tokenizer": tiny.tokenizer(), "tokens_per_batch": 120, "padding_side": side, "layer": 2, "progress": False}
    wanted = saerl_fast.featurize(tiny.texts(30), made(family), tiny.sae(metadata={}), **call)
    batches = guard_batches(monkeypatch)
    found = saerl_fast.featurize(tiny.texts(30), made(family), tiny.sae(metadata={}), **call)
    assert len(batches) > 2
    assert found.provenance["layout"] == "padded, own masks"
    np.testing.assert_array_equal(found.values, wanted.values)


def test_transformers_own_masks_read_the_device_where_batches_are_padded(monkeypatch):
    """Why padded batches on CUDA have masks of our own; where this no longer holds, those can go."""
    guard_batches(monkeypatch)
    with pytest.raises(HostRead):
        saerl_fast.featurize(
            tiny.texts(5), made("qwen2"), tiny.sae(), tokenizer=tiny.tokenizer(), packing="off", progress=False
        )


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: int(x[0]),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: torch.repeat_interleave(x.long()),
        lambda x: x.unique(),
        lambda x: torch.equal(x, x),
    ],
)
def test_the_guard_sees_a_read(monkeypatch, read):
    with no_host_reads(monkeypatch), pytest.raises(HostRead):
        read(torch.ones(3))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["topk", "jumprelu", "standard", "gated"])
@pytest.mark.parametrize(("packing", "keep_hidden"), [("on", False), ("on", True), ("off", False)])
def test_on_a_device_the_batches_wait_for_nothing(monkeypatch, packing, keep_hidden, kind):
    """torch itself raises at whatever waits."""

    def guarded(*args):
        torch.cuda.set_sync_debug_mode("error")
        try:
            _featurize_batch(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    model = made("qwen2").to("cuda", torch.bfloat16)
    call = {"tokenizer": tiny.tokenizer(), "tokens_per_batch": 120, "packing": packing, "keep_hidden": keep_hidden}
    call |= {"layer": 2, "progress": False}
    wanted = saerl_fast.featurize(tiny.texts(30), model, tiny.sae(kind, metadata={}), **call)
    monkeypatch.setattr(shard, "_featurize_batch", guarded)
    found = saerl_fast.featurize(tiny.texts(30), model, tiny.sae(kind, metadata={}), **call)
    np.testing.assert_array_equal(found.values, wanted.values)
