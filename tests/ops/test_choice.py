"""The choice of backend: a pure function with reasons."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from saerl_fast import ops
from saerl_fast.errors import BackendUnavailable, InputError
from saerl_fast.ops import choice
from saerl_fast.ops.choice import Call, Implementation, pick
from saerl_fast.ops.table import TABLE
from tests.op_table import OPERATIONS, absent


def table(**refusals):
    """One operation whose backends refuse with the given reason, or never (None)."""
    return {
        "op": {
            name: Implementation(lambda: None, lambda call, reason=reason: reason) for name, reason in refusals.items()
        }
    }


CPU, CUDA = Call("cpu"), Call("cuda")


def test_automatic_takes_the_first_that_can():
    both = table(cuda=None, triton=None, cpu_int8=None, cpu=None, reference=None)
    assert pick(both, "op", CPU, None) == ("cpu_int8", ())
    assert pick(both, "op", CUDA, None) == ("cuda", ())


def test_automatic_falls_down_the_list_with_reasons():
    broken = table(cuda="no nvcc", cpu_int8="no VNNI", cpu="no compiler", reference=None)
    assert pick(broken, "op", CPU, None) == ("reference", ("cpu_int8: no VNNI", "cpu: no compiler"))
    assert pick(broken, "op", CUDA, None) == (
        "reference",
        (
            "cuda: no nvcc",
            "triton: not written for this operation",
            "triton_bf16: not written for this operation",
        ),
    )


def slow_for_few(call):
    return "slow for few latents" if call.n_latents < 100 else None


def test_a_slower_backend_is_passed_over_unless_asked_for():
    never = lambda call: None  # noqa: E731
    two = {
        "op": {
            "cpu_int8": Implementation(never, never, slow_for_few),
            "cpu": Implementation(never, never),
        }
    }
    few, many = Call("cpu", n_latents=99), Call("cpu", n_latents=100)
    assert pick(two, "op", many, None) == ("cpu_int8", ())
    assert pick(two, "op", few, None) == ("cpu", ("cpu_int8: slow for few latents",))
    assert pick(two, "op", few, "cpu_int8") == ("cpu_int8", ())


def test_from_one_compiled_backend_to_the_next_is_no_warning(caplog):
    choice._log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="saerl_fast"):
        assert choice.choose(table(cpu_int8="no VNNI", cpu=None), "op", CPU, None) == "cpu"
    assert [record.levelno for record in caplog.records] == [logging.INFO]


def test_other_devices_take_the_reference():
    assert pick(table(cpu=None, reference=None), "op", Call("mps"), None) == ("reference", ())


def test_asked_for_must_succeed_or_raise():
    broken = table(cuda="no nvcc", cpu=None, reference=None)
    assert pick(broken, "op", CPU, "reference") == ("reference", ())
    with pytest.raises(BackendUnavailable, match=r"op: 'cuda' was asked for, but cannot .* cuda: no nvcc"):
        pick(broken, "op", CPU, "cuda")
    with pytest.raises(BackendUnavailable, match="triton: not written for this operation"):
        pick(broken, "op", CPU, "triton")


def test_block_asks_and_ends():
    assert choice.wanted_backend("decode") is None
    with ops.backend("reference"):
        assert choice.wanted_backend("decode") == "reference"
        assert choice.wanted_backend("decode", "cpu") == "cpu"  # the argument is nearer
        with ops.backend("cpu"):
            assert {choice.wanted_backend(op) for op in TABLE} == {"cpu"}
        assert choice.wanted_backend("decode") == "reference"
    assert choice.wanted_backend("decode") is None


def wanted():
    return [choice.wanted_backend(op) for op in ("topk_encode", "topk_encode_certified", "segment_pool")]


def test_inner_blocks_stand_over_outer_ones_for_what_they_name():
    with ops.backend(topk_encode="triton_bf16"):
        assert wanted() == ["triton_bf16", None, None]
        with ops.backend(segment_pool="cpu"):
            assert wanted() == ["triton_bf16", None, "cpu"]
            with ops.backend(topk_encode="cpu_int8"):
                assert wanted() == ["cpu_int8", None, "cpu"]
            with ops.backend("cuda"):
                assert wanted() == ["cuda"] * 3
            assert wanted() == ["triton_bf16", None, "cpu"]
    with ops.backend("cuda", topk_encode="triton_bf16"):
        assert wanted() == ["triton_bf16", "cuda", "cuda"]
    assert wanted() == [None] * 3


def test_a_block_that_raises_ends_too():
    with pytest.raises(KeyError), ops.backend(topk_encode="cpu"):
        raise KeyError
    assert wanted() == [None] * 3


def test_a_wish_is_of_its_thread():
    def in_thread(count):
        with ops.backend(topk_encode=("cpu", "reference")[count]):
            both_there.wait(10)
            found = wanted()
            both_there.wait(10)
        return found, wanted()

    both_there = threading.Barrier(2)
    with ops.backend(segment_pool="reference"), ThreadPoolExecutor(2) as pool:
        found = list(pool.map(in_thread, range(2)))
    assert found == [(["cpu", None, None], [None] * 3), (["reference", None, None], [None] * 3)]


def test_a_wish_for_one_operation_leaves_the_others_alone():
    with ops.backend(topk_encode="cuda"):
        with pytest.raises(BackendUnavailable, match="topk_encode: 'cuda' was asked for"):
            OPERATIONS["topk_encode"](OPERATIONS["topk_encode"].samples[0].make())
        for name in ("topk_encode_certified", "threshold_encode", "segment_pool", "decode"):
            OPERATIONS[name](OPERATIONS[name].samples[0].make())
    with ops.backend(threshold_encode="cuda"), pytest.raises(BackendUnavailable, match="threshold_encode: 'cuda'"):
        ops.threshold_encode_spaced(**OPERATIONS["threshold_encode"].samples[0].make())


def test_unknown_name():
    with (
        pytest.raises(InputError, match="one of cuda, triton, triton_bf16, cpu_int8, cpu, reference; got 'gpu'"),
        ops.backend("gpu"),
    ):
        pass


@pytest.mark.parametrize(
    ("names", "operations", "message"),
    [
        ((), {"topk_encode": "gpu"}, "one of cuda, .*; got 'gpu'"),
        ((), {"topk_encode": None}, "one of cuda, .*; got None"),
        ((), {"encode": "cpu"}, "operations are topk_encode, .*; got 'encode'"),
        ((), {"threshold_encode_spaced": "cpu"}, "operations are .*; got 'threshold_encode_spaced'"),
        (("gpu",), {"topk_encode": "cpu"}, "one of cuda, .*; got 'gpu'"),
        ((), {}, "for every operation, or for some .* got none"),
    ],
)
def test_unknown_names_are_refused_and_nothing_is_asked_for(names, operations, message):
    with pytest.raises(InputError, match=message), ops.backend(*names, **operations):
        pass
    assert wanted() == [None] * 3


def test_block_reaches_the_operation():
    with ops.backend("cuda"), pytest.raises(BackendUnavailable, match="topk_encode: 'cuda' was asked for"):
        OPERATIONS["topk_encode"](OPERATIONS["topk_encode"].samples[0].make())


def test_int8_screening_is_never_forced_where_it_cannot_run():
    arguments = OPERATIONS["topk_encode"].samples[0].make()
    reason = absent("cpu_int8")
    if reason is None:
        assert ops.topk_encode(**arguments, backend="cpu_int8").values.shape == (9, 7)
    else:
        with pytest.raises(BackendUnavailable, match="'cpu_int8' was asked for"):
            ops.topk_encode(**arguments, backend="cpu_int8")


@pytest.mark.parametrize(
    ("sizes", "backend"),
    [
        ({"k": 64, "n_latents": 24576, "width": 1536}, "cpu_int8"),
        ({"k": 256, "n_latents": 24576, "width": 1536}, "cpu_int8"),
        ({"k": 512, "n_latents": 24576, "width": 1536}, "cpu"),
        ({"k": 32, "n_latents": 4096, "width": 384}, "cpu_int8"),
        ({"k": 64, "n_latents": 4096, "width": 384}, "cpu_int8"),
        ({"k": 128, "n_latents": 4096, "width": 384}, "cpu"),
        ({"k": 32, "n_latents": 4096, "width": 256}, "cpu"),
    ],
)
def test_int8_screening_is_chosen_where_it_was_measured_faster(sizes, backend):
    if reason := absent(backend):
        pytest.skip(reason)
    assert pick(TABLE, "topk_encode", Call("cpu", **sizes), None)[0] == backend


def test_double_goes_to_the_reference_and_cpu_says_why():
    arguments = OPERATIONS["topk_encode"].samples[0].make()
    arguments["x"], arguments["w_enc"] = arguments["x"].double(), arguments["w_enc"].double()
    with pytest.raises(BackendUnavailable, match="float64 inputs need the reference|compiled module is missing"):
        ops.topk_encode(**arguments, backend="cpu")
    assert ops.topk_encode(**arguments).values.shape == (9, 7)


def test_fallback_is_said_once(caplog):
    choice._log_once.cache_clear()
    broken = table(cpu_int8="no VNNI", cpu="no compiler", reference=None)
    with caplog.at_level(logging.INFO, logger="saerl_fast"):
        for _ in range(3):
            assert choice.choose(broken, "op", CPU, None) == "reference"
    assert [record.getMessage() for record in caplog.records] == [
        "op runs on reference (cpu_int8: no VNNI; cpu: no compiler)"
    ]
    assert caplog.records[0].levelno == logging.WARNING


def test_the_only_compiled_backend_is_no_news(caplog):
    choice._log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="saerl_fast"):
        assert choice.choose(table(cpu=None), "op", CPU, None) == "cpu"
    assert caplog.records == []
