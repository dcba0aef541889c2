"""Padded texts without the masks of transformers: the same activations as alone, on both sides, and never NaN."""

import logging
from types import SimpleNamespace

import pytest
import torch

from saerl_fast.extract import packing
from saerl_fast.extract.capture import Capture
from saerl_fast.extract.packing import OWN_MASKS, Layout
from tests.extract.test_packing import CAUSAL, CPU, ENCODERS, made, random_texts, reader_of

OURS, THEIRS = Layout(OWN_MASKS, ""), Layout(None, "")


def activations(reader, texts, layout, side="right"):
    """[tokens, D] of each text, and the whole batch."""
    with Capture(reader.model, reader.hook) as capture, layout.on(reader.model):
        hidden = capture(layout.collate(texts, reader.pad_id, side, CPU))
    spans = [slice(-len(t), None) if side == "left" else slice(0, len(t)) for t in texts]
    return [row[span] for row, span in zip(hidden, spans, strict=True)], hidden


@pytest.mark.parametrize(
    ("family", "side"), [*((f, "right") for f in CAUSAL + ENCODERS), *((f, "left") for f in CAUSAL)]
)
def test_it_equals_alone_as_well_as_their_masks_do(family, side):
    """The 2x rule: against the text alone in float64, at most twice the error of transformers' masks."""
    reader = reader_of(made(family))
    for lengths in ([7, 1, 20, 3, 13], [20, 20]):
        texts = random_texts(lengths)
        ours, whole = activations(reader, texts, OURS, side)
        theirs, _ = activations(reader, texts, THEIRS, side)
        assert whole.isfinite().all()
        reader.model.double()
        alone = [activations(reader, [text], THEIRS)[0][0] for text in texts]
        reader.model.float()
        off, usual = (
            max(float((row - true).abs().max()) for row, true in zip(rows, alone, strict=True))
            for rows in (ours, theirs)
        )
        assert 0 < off <= 2 * usual


@pytest.mark.parametrize("family", [*CAUSAL, *ENCODERS, "qwen3_moe"])
def test_the_self_check_lets_the_families_through(family):
    assert packing._refusal(reader_of(made(family)), OWN_MASKS, limit=64) is None


def test_causal_texts_padded_on_the_right_need_no_mask():
    reader, texts = reader_of(made("qwen2")), random_texts([7, 1, 20])
    for side, masks in (("right", 0), ("left", 1)):
        batch = OURS.collate(texts, 0, side, CPU)
        with Capture(reader.model, reader.hook) as capture, OURS.on(reader.model):
            capture(batch)
        assert len(batch.packing.masks) == masks
        assert batch.packing.windows == [(None, True)] * 3
    assert OURS.collate(random_texts([4, 4]), 0, "left", CPU).packing.real is None


def test_a_text_that_sees_its_padding_is_found(monkeypatch):
    """As it is where the tokens of a batch are not told apart from its padding."""
    from saerl_fast.extract.padding import Padding

    everything = Padding._all_seen
    monkeypatch.setattr(Padding, "_seen", lambda self, query, rule: torch.ones_like(everything(self, query, rule)))
    assert "sees its neighbours" not in str(packing._refusal(reader_of(made("bert")), OWN_MASKS, limit=64))
    assert "differs from itself alone" in packing._refusal(reader_of(made("bert")), OWN_MASKS, limit=64)
    assert "differs from itself alone" in packing._refusal(reader_of(made("qwen2")), OWN_MASKS, limit=64)


class OnDevice(torch.nn.Module):
    """A model whose parameters say that they lie on a GPU."""

    def __init__(self, model):
        super().__init__()
        self.config = model.config

    def parameters(self, recurse=True):
        yield SimpleNamespace(device=SimpleNamespace(type="cuda"), dtype=torch.float32)


@pytest.mark.parametrize(
    ("refusal", "name", "reason"),
    [(None, "padded, own masks", "no batch waits"), ("why not", "padded", "transformers' masks wait: why not")],
)
def test_padded_batches_on_a_device_get_them_where_the_model_takes_them(monkeypatch, caplog, refusal, name, reason):
    asked = []
    monkeypatch.setattr(packing, "_refusal", lambda reader, kernel, limit: asked.append(kernel) or refusal)
    with caplog.at_level(logging.INFO):
        layout = packing.choose_layout(SimpleNamespace(model=OnDevice(made("qwen2")), name="m"), "off", 64)
    assert layout.name == name
    assert reason in layout.reason
    assert asked == [OWN_MASKS]
    assert not layout.packed
    assert packing.choose_layout(reader_of(made("qwen2")), "off", 64) == Layout(None, "packing='off'")
