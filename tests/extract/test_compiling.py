"""Compiled blocks: the same activations, one set of graphs for all texts, and a reason where it cannot be.

By the backend that traces and runs the graphs as they are; tests/nightly/test_compiled.py has the compiler behind it.
"""

import json
import logging

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

import saerl_fast
from saerl_fast.errors import InputError, JobMismatchError
from saerl_fast.extract import compiling
from saerl_fast.extract.capture import Capture
from saerl_fast.extract.compiling import Forward, choose_forward
from saerl_fast.extract.hooks import Hook, find_blocks
from saerl_fast.extract.packing import OWN_MASKS, Layout
from tests import tiny
from tests.extract.test_packing import CPU, made, random_texts, reader_of

PADDED = Layout(None, "")
PACKED = Layout("text_by_text", "")
OWN = Layout(OWN_MASKS, "")
LENGTHS = [(4, 4, 4), (30,), (17, 2), (1, 9, 25, 3, 3), (12, 12), (8, 1), (31, 30)]


@pytest.fixture(autouse=True)
def traced(monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs():
    return counters["stats"]["unique_graphs"]


def hidden(reader, layout, forward, lengths):
    """[tokens, D] of the real tokens of one batch."""
    with Capture(reader.model, reader.hook) as capture, layout.on(reader.model), forward.on(reader):
        batch = layout.collate(random_texts(lengths), reader.pad_id, "right", CPU)
        return capture(batch).flatten(0, 1).index_select(0, batch.kept)


def assert_twice(reader, layout, forward):
    """Against float64, at most twice the error of the blocks as they are."""
    found = [hidden(reader, layout, forward, lengths) for lengths in LENGTHS]
    plain = [hidden(reader, layout, Forward(None, ""), lengths) for lengths in LENGTHS]
    reader.model.double()
    true = [hidden(reader, layout, Forward(None, ""), lengths) for lengths in LENGTHS]
    errors = [max(float((a - b).abs().max()) for a, b in zip(side, true, strict=True)) for side in (found, plain)]
    assert 0 < errors[0] <= 2 * errors[1]


@pytest.mark.parametrize(
    ("family", "layout", "most"),
    [("qwen2", PADDED, 3), ("gpt2", PADDED, 3), ("bert", PADDED, 3), ("qwen2", PACKED, 1), ("qwen2", OWN, 2)],
    ids=["qwen2", "gpt2", "bert", "qwen2 packed", "qwen2 own masks"],
)
def test_one_set_of_graphs_serves_all_blocks_and_lengths(family, layout, most):
    reader = reader_of(made(family))
    forward = choose_forward(reader, layout, "on")
    assert forward.name == "compiled, aot_eager"
    assert graphs() == most
    assert_twice(reader, layout, forward)
    assert graphs() == most
    assert not counters["graph_break"]
    assert not any("forward" in block.__dict__ for block in find_blocks(reader.model))


def test_packed_windows_reach_the_kernel_through_the_graph():
    reader = reader_of(made("mistral"))
    forward = choose_forward(reader, PACKED, "on")
    assert_twice(reader, PACKED, forward)
    batch = PACKED.collate(random_texts([20, 3]), 0, "right", CPU)
    reader.model.float()
    with Capture(reader.model, reader.hook) as capture, PACKED.on(reader.model), forward.on(reader):
        capture(batch)
    assert batch.packing.windows == [(6, True)] * 3


def test_the_hook_fires_inside_of_a_block_and_others_behind_one():
    """A block with the hook inside stays as it is: no graph ends in the middle of one."""
    model, seen = made("qwen2"), []
    handle = find_blocks(model)[1].register_forward_hook(lambda *_: seen.append(1))
    call = {"tokenizer": tiny.tokenizer(), "hook": "blocks.2.hook_mlp_out", "tokens_per_batch": 60, "progress": False}
    sae = tiny.sae(metadata={})
    wanted = saerl_fast.featurize(tiny.texts(12), model, sae, **call)
    before = len(seen)
    found = saerl_fast.featurize(tiny.texts(12), model, sae, **call, compile="on")
    handle.remove()
    assert len(seen) >= 2 * before > 0
    np.testing.assert_array_equal(found.indices, wanted.indices)
    np.testing.assert_allclose(found.values, wanted.values, rtol=1e-4, atol=1e-5)
    for hook, compiled in (("mlp_out", 2), ("resid_post", 3), ("resid_pre", 3), ("embed", 0)):
        assert len(compiling._blocks_to_compile(model, Hook(hook, 2))) == compiled
    assert compiling._blocks_to_compile(model, Hook("resid_pre", 0)) == []


def test_it_is_part_of_the_job(tmp_path):
    call = {
        "model": made("qwen2"),
        "sae": tiny.sae(),
        "tokenizer": tiny.tokenizer(),
        "progress": False,
        "packing": "on",
    }
    made_so = saerl_fast.featurize(tiny.texts(5), **call, compile="on", out=tmp_path)
    assert made_so.provenance["forward"] == "compiled, aot_eager"
    source = json.loads((tmp_path / "manifest.json").read_text())["source"]
    assert source["forward"] == "compiled, aot_eager: the blocks passed their self-check"
    with pytest.raises(JobMismatchError, match="forward"):
        saerl_fast.featurize(tiny.texts(5), **call, out=tmp_path)
    assert saerl_fast.featurize(tiny.texts(5), **call).provenance["forward"] == "eager"


def no_compiler(monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "no_such_compiler")
    return reader_of(made("qwen2"))


def reading_block(monkeypatch):
    """A block that reads a number of its input has no graph of its own."""
    reader = reader_of(made("qwen2"))
    kind = type(find_blocks(reader.model)[0])
    forward = kind.forward

    def reading(self, hidden_states, *args, **kwargs):
        if hidden_states.sum() > 0:
            hidden_states = hidden_states + 0
        return forward(self, hidden_states, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", reading)
    return reader


def other_result(monkeypatch):
    reader = reader_of(made("qwen2"))
    real = compiling._compiled

    def off(block, backend):
        return lambda *args, **kwargs: real(block, backend)(*args, **kwargs) * 1.001

    monkeypatch.setattr(compiling, "_compiled", off)
    return reader


def one_length_each(monkeypatch):
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda body, **how: real(body, **how | {"dynamic": False}))
    return reader_of(made("qwen2"))


def hooked_inside(monkeypatch):
    reader = reader_of(made("qwen2"))
    find_blocks(reader.model)[0].mlp.register_forward_hook(lambda *_: None)
    return reader


def replaced_forward(monkeypatch):
    reader = reader_of(made("qwen2"))
    block = find_blocks(reader.model)[0]
    block.forward = block.forward
    return reader


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (no_compiler, "InvalidBackend: Invalid backend: 'no_such_compiler'"),
        (reading_block, "Unsupported: Data-dependent branching"),
        (other_result, "compiled, activations differ by 0.00"),
        (one_length_each, "compiled anew for texts of other lengths"),
        (hooked_inside, "there are hooks inside of its blocks"),
        (replaced_forward, "the forward of its blocks is replaced"),
    ],
)
def test_what_cannot_be_compiled_says_why(monkeypatch, caplog, broken, reason):
    """Asked for, it is an error; where it would have been the choice, the blocks run as they are, and the reason stays."""
    reader = broken(monkeypatch)
    with pytest.raises(InputError, match="Leave compile='auto'") as raised:
        choose_forward(reader, PACKED, "on")
    assert reason in str(raised.value)
    monkeypatch.setattr(compiling, "PAYS", ("cpu",))
    with caplog.at_level(logging.WARNING):
        forward = choose_forward(reader, PACKED, "auto")
    assert forward.name == "eager"
    assert reason in forward.reason
    assert reason in caplog.text
    assert forward.asked


def test_left_to_itself_nothing_is_compiled_anywhere():
    reader = reader_of(made("qwen2"))
    assert compiling.PAYS == ()
    assert choose_forward(reader, PADDED, "auto") == Forward(
        None, "no measurement shows that compiling pays on cpu; compile='on' asks for it"
    )
    assert choose_forward(reader, PADDED, "off").name == "eager"
    assert graphs() == 0
    with pytest.raises(InputError, match="compile must be one of"):
        choose_forward(reader, PADDED, "maybe")
