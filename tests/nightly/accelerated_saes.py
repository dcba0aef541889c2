"""A plugin for sae-lens's own tests: every inference SAE that they make is accelerated.

Their tests encode in training mode and with gradients, where sae-lens's own encode would run: here each call runs in
eval mode and without gradients, and whatever the kind, encode_sparse is held to sae-lens's encode beside it.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import torch
from sae_lens.registry import SAE_CLASS_REGISTRY
from sae_lens.saes.sae import SAE, _blank_hook, _disable_hooks

from saerl_fast import accelerate
from saerl_fast.accelerated import _Accelerated
from saerl_fast.errors import FormatError
from saerl_fast.ops import TopKCodes

COUNTS: Counter[str] = Counter()
HONEST = _Accelerated.encode


def pytest_addoption(parser):
    parser.addoption("--accelerated-counts", metavar="FILE", help="write how often what ran, as JSON")


def pytest_configure(config):
    _Accelerated.encode = encode
    classes = tuple(made for made, _ in SAE_CLASS_REGISTRY.values())
    for made in classes:
        made.__init__ = then_accelerated(made.__init__, classes)
    # made without weights, they are given them later
    SAE.load_state_dict = then_accelerated(SAE.load_state_dict, classes)


def then_accelerated(method, classes):
    def call(self, *arguments, **named):
        done = method(self, *arguments, **named)
        ready = type(self) in classes and all(weight.device.type != "meta" for weight in self.parameters())
        if ready and method.__qualname__.split(".")[0] in (type(self).__name__, "SAE"):
            try:
                accelerate(self)
            except FormatError:
                COUNTS[f"{self.cfg.architecture()}: refused"] += 1
        return done

    return call


def encode(self, x):
    theirs, kind = self.theirs, self.theirs.cfg.architecture()
    if x.requires_grad or x.device.type == "meta":
        return HONEST(self, x)
    before = theirs.training
    theirs.eval()
    try:
        with torch.no_grad():
            COUNTS[f"{kind}: {'ours' if self._reason_for_theirs(x) is None else 'theirs'}"] += 1
            found = HONEST(self, x)
            # once at a time: the inner one would turn them on again for the outer
            with nullcontext() if theirs.hook_sae_input is _blank_hook else _disable_hooks(theirs):
                compare(self.encode_sparse(x), self.plain(x))
            COUNTS[f"{kind}: sparse compared"] += 1
    finally:
        theirs.train(before)
    return found


def compare(codes, wanted):
    wanted = wanted.reshape(-1, wanted.shape[-1])
    dense = torch.zeros_like(wanted)
    if isinstance(codes, TopKCodes):
        dense.scatter_(1, codes.indices.long(), codes.values.to(dense.dtype))
    else:
        counts = codes.indptr.diff()
        row = torch.arange(len(counts)).repeat_interleave(counts)
        dense[row, codes.indices.long()] = codes.values.to(dense.dtype)
    torch.testing.assert_close(dense, wanted, rtol=1e-4, atol=1e-5)


def pytest_sessionfinish(session):
    if file := session.config.getoption("--accelerated-counts"):
        Path(file).write_text(json.dumps(COUNTS))
