"""Batched equals single in every family: padding on either side changes a token's activations by rounding alone.

The rule: against float64, a padded batch may be at most twice as far off as one text at a time.
"""

import copy
import warnings

import numpy as np
import pytest
import torch

from saerl_fast.extract.batching import collate
from saerl_fast.extract.capture import Capture
from saerl_fast.extract.hooks import block_output, parse_hook
from saerl_fast.extract.reader import make_reader
from saerl_fast.extract.tokens import TokenizedText
from tests import families, tiny

LENGTHS = [23, 1, 9, 17, 2, 23]  # longer and shorter than the windows of 8


def texts(seed=0):
    generator = np.random.default_rng(seed)
    return [TokenizedText(generator.integers(3, 400, size), np.ones(size, bool), "ok") for size in LENGTHS]


def read(model, hook, chosen, side="right", pad=2):
    batch = collate(chosen, pad, side, torch.device("cpu"))
    with Capture(model, hook) as capture:
        hidden = capture(batch)
    return hidden.reshape(-1, hidden.shape[-1]).index_select(0, batch.kept)


@pytest.fixture(scope="module", params=families.FAMILIES)
def truth(request):
    """(family, rows in float64, largest error of one text at a time in float32)"""
    model = families.model(request.param)
    wide = copy.deepcopy(model).double()
    if request.param == "qwen3_moe":
        wide.set_experts_implementation("eager")  # the grouped product of torch has no float64
    hook = block_output(tiny.LAYERS - 1)
    rows = torch.cat([read(wide, hook, [text]) for text in texts()])
    single = torch.cat([read(model, hook, [text]) for text in texts()])
    return request.param, rows, float((single.double() - rows).abs().max())


@pytest.mark.parametrize("pad", [2, 7], ids=["pad_id", "another_pad_id"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_batched_equals_single(truth, side, pad):
    family, rows, error = truth
    found = read(families.model(family), block_output(tiny.LAYERS - 1), texts(), side, pad)
    # float32 once, where one text alone happens to be exact
    bound = 2 * error + 2**-22 * float(rows.abs().max())
    assert float((found.double() - rows).abs().max()) <= bound


def test_the_rule_sees_a_mask_that_lets_padding_in(truth):
    family, rows, error = truth
    model, hook = families.model(family), block_output(tiny.LAYERS - 1)
    batch = collate(texts(), 2, "left", torch.device("cpu"))
    batch.attention_mask.fill_(1)
    with Capture(model, hook) as capture:
        found = capture(batch).flatten(0, 1).index_select(0, batch.kept)
    assert float((found.double() - rows).abs().max()) > 1000 * (2 * error + 2**-22 * float(rows.abs().max()))


@pytest.mark.parametrize("family", ["gpt2", "bert", "roberta"])
def test_left_padding_counts_positions_from_each_texts_first_token(family):
    """Models with a table of positions; without ids of their own they would count the padding too."""
    model, hook = families.model(family), block_output(1)
    short = texts()[2]
    alone = read(model, hook, [short])
    padded = read(model, hook, [texts()[0], short], "left")[-len(short) :]
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "roberta"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_text_that_holds_the_padding_id_is_read_whole(family, side):
    """The mask comes from lengths. A mask made by comparing ids would lose these tokens."""
    model, hook = families.model(family), block_output(1)
    holds = TokenizedText(np.array([5, 2, 9, 7, 2, 11]), np.ones(6, bool), "ok")
    if family == "roberta":  # whose own positions come from ids: no text of ours holds <pad>, but one may hold </s>
        holds = TokenizedText(np.array([5, 1, 9, 7, 1, 11]), np.ones(6, bool), "ok")
    pad = 1 if family == "roberta" else 2
    alone = read(model, hook, [holds], pad=pad)
    together = read(model, hook, [texts()[0], holds], side, pad=pad)[-6:]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("point", ["hook_resid_pre", "hook_resid_post", "hook_mlp_out", "hook_attn_out"])
def test_gpt2_releases_read_the_stream_of_a_model_with_centred_writing_weights(point):
    """Every matrix that writes to the stream less its mean over the width: what such a model holds is x - mean(x)."""
    model = families.model("gpt2")
    centred = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in centred.named_parameters():
            if name.endswith(("wte.weight", "wpe.weight", "c_proj.weight", "c_proj.bias")):
                parameter -= parameter.mean(dim=-1, keepdim=True)
    metadata = {
        "hook_name": f"blocks.2.{point}",
        "model_from_pretrained_kwargs": {"center_writing_weights": True},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reader = make_reader(model, tiny.sae(metadata=metadata), tokenizer=tiny.tokenizer())
    found = read(model, reader.hook, texts())
    wanted = read(centred, parse_hook(f"blocks.2.{point}"), texts())
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    path = {"hook_resid_pre": ".input", "hook_mlp_out": ".mlp", "hook_attn_out": ".attn.output"}.get(point, "")
    by_path = make_reader(model, tiny.sae(metadata=metadata), tokenizer=tiny.tokenizer(), hook=f"transformer.h.2{path}")
    assert by_path.hook == reader.hook
    assert float(read(model, parse_hook(f"blocks.2.{point}"), texts()).mean(-1).abs().max()) > 0.01


def test_the_heads_are_not_centred_by_centred_writing_weights():
    metadata = {
        "hook_name": "blocks.2.attn.hook_z",
        "model_from_pretrained_kwargs": {"center_writing_weights": True},
    }
    reader = make_reader(families.model("gpt2"), tiny.sae(metadata=metadata), tokenizer=tiny.tokenizer())
    assert not reader.hook.centred
