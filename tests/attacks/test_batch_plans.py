"""The batch plan is data: a run that goes on computes in the batches of the run that nobody stopped, whatever they are."""

import random

import pytest

import saerl_fast
from saerl_fast.errors import JobMismatchError
from saerl_fast.extract.job import Job
from saerl_fast.extract.store import NOTE, shard_path
from saerl_fast.formats.safetensors_file import read_header
from tests import tiny
from tests.extract.stores import content
from tests.nightly.sizes import daily_and_nightly


class Stopped(BaseException):
    pass


@pytest.fixture(scope="module")
def call():
    return {"model": tiny.causal_lm(), "sae": tiny.sae(), "tokenizer": tiny.tokenizer(), "progress": False}


def plan(folder):
    """The batches that each shard says it was run in, as JSON text."""
    job = Job.load(folder)
    return [read_header(shard_path(folder, shard))["__metadata__"][NOTE] for shard in range(job.shards)]


@daily_and_nightly("cases", 2, 20)
def test_a_run_that_goes_on_keeps_the_plan(tmp_path, call, cases, record_property):
    generator, plans = random.Random(cases), set()
    for case in range(cases):
        texts = tiny.texts(generator.randrange(20, 60))
        cut = {"tokens_per_batch": generator.randrange(20, 400), "shard_rows": generator.randrange(4, 16)}
        cut |= {"padding_side": generator.choice(["left", "right"]), "packing": generator.choice(["on", "off"])}
        whole, stopped = tmp_path / f"{case}-whole", tmp_path / f"{case}-stopped"
        saerl_fast.featurize(texts, **call, **cut, out=whole)
        left = generator.randrange(len(plan(whole)))

        def stop(rows):
            nonlocal left
            left -= 1
            if left < 0:
                raise Stopped

        with pytest.raises(Stopped):
            saerl_fast.featurize(texts, **call, **cut, out=stopped, each_shard=stop)
        other = cut | {"tokens_per_batch": cut["tokens_per_batch"] + 1}
        with pytest.raises(JobMismatchError, match="tokens_per_batch"):
            saerl_fast.featurize(texts, **call, **other, out=stopped)
        saerl_fast.featurize(texts, **call, **cut, out=stopped)
        assert content(stopped) == content(whole)
        assert plan(stopped) == plan(whole)
        plans.add(tuple(plan(whole)))
    assert len(plans) == cases
    record_property("cases", cases)
