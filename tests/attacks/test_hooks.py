"""An exception at any depth of the forward leaves no hook behind, and the model's next output is the same to the bit."""

import random

import pytest
import torch

import saerl_fast
from saerl_fast.errors import SaerlError
from saerl_fast.extract.capture import Capture, _Captured
from saerl_fast.extract.reader import make_reader
from tests import tiny
from tests.nightly.sizes import daily_and_nightly


class Injected(Exception):
    pass


def hooks(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def failing(*_):
    raise Injected


@daily_and_nightly("exceptions", 100, 1_000)
def test_exceptions_at_random_depth(exceptions, record_property):
    generator = random.Random(exceptions)
    models = [tiny.causal_lm("qwen2"), tiny.causal_lm("gpt2"), tiny.encoder("bert")]
    tokenizer, sae, texts = tiny.tokenizer(), tiny.sae(), tiny.texts(3)
    readers = [make_reader(model, sae, tokenizer=tokenizer, layer=2) for model in models]
    call = {"sae": sae, "tokenizer": tokenizer, "layer": 2, "progress": False}
    before = [saerl_fast.featurize(texts, model, **call) for model in models]
    thrown = 0
    for number in range(exceptions):
        which = number % len(models)
        model, reader = models[which], readers[which]
        model.train(number % 2 == 0)
        module = generator.choice([module for module in model.modules() if module is not model])
        handle = generator.choice([module.register_forward_hook, module.register_forward_pre_hook])(failing)
        ids = torch.tensor([tokenizer(texts[0])["input_ids"]])
        try:
            with Capture(model, reader.hook):
                if number % 5 == 0:
                    with Capture(model, reader.hook):  # one inside another
                        model(input_ids=ids)
                model(input_ids=ids)
        except Injected:
            thrown += 1
        except _Captured:
            pass  # the forward ended before it came to the failing module
        handle.remove()
        assert hooks(model) == 0
        assert model.training == (number % 2 == 0)
        if number % 20 < len(models):
            after = saerl_fast.featurize(texts, model, **call)
            assert (after.values == before[which].values).all()
            assert (after.indices == before[which].indices).all()
            assert hooks(model) == 0
    assert thrown > exceptions / 4
    record_property("exceptions", exceptions)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, torch.OutOfMemoryError("CUDA out of memory")])
def test_what_is_no_exception_too(error):
    model = tiny.causal_lm()

    def stop(*_):
        raise error

    handle = model.model.layers[0].register_forward_hook(stop)
    with pytest.raises((KeyboardInterrupt, SystemExit, SaerlError)):
        saerl_fast.featurize(["a"], model, tiny.sae(), tokenizer=tiny.tokenizer(), progress=False)
    handle.remove()
    assert hooks(model) == 0
