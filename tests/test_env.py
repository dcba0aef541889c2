"""`saerl env`: complete, and unbreakable where things are missing."""

import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from saerl_fast import env
from saerl_fast.errors import BackendUnavailable
from saerl_fast.kernels import gpu, native, scores_cuda, triton_runtime
from saerl_fast.ops.choice import BACKENDS, Call, pick
from saerl_fast.ops.table import TABLE


def test_every_cell_is_filled():
    operations = env.env_dict()["operations"]
    assert set(operations) == set(TABLE)
    for cells in operations.values():
        assert tuple(cells) == BACKENDS
        assert cells["reference"] == "yes"
        assert all(cells.values())


def test_report_has_one_line_per_operation_and_every_reason():
    report = env.env_report()
    described = env.env_dict()
    for op, cells in described["operations"].items():
        (line,) = (line for line in report.splitlines() if line.startswith(f"{op} "))
        assert line.count("yes") == list(cells.values()).count("yes")
        assert line.count("[") == len(BACKENDS) - list(cells.values()).count("yes")
        for reason in cells.values():
            assert reason in report
    for package in env.PACKAGES:
        assert package in report
    assert described["versions"]["torch"] in report


def test_absent_package_is_said_to_be_absent():
    assert env._version("no-such-package") == "not installed"


def test_missing_module_is_the_reason(monkeypatch):
    monkeypatch.setattr(native, "_load", lambda: (None, "the compiled module is missing: no compiler"))
    described = env.env_dict()
    assert described["operations"]["topk_encode"]["cpu"] == "the compiled module is missing: no compiler"
    assert described["compiled module"] == {"missing": "the compiled module is missing: no compiler"}
    assert "no compiled module" in env.env_report()


def test_without_torch():
    code = "import sys; sys.modules['torch'] = None; from saerl_fast import env; print(env.env_report())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "torch cannot be imported" in run.stdout
    assert "operations" in run.stdout


KEPT = (gpu._too_old, scores_cuda._refused, triton_runtime.missing)


@pytest.fixture
def simulate(monkeypatch):
    """Devices of these compute capabilities, a build with CUDA whose probe answers `refused`, a release of Triton."""

    if native.missing():
        pytest.skip(native.missing())
    built = native.module()

    def forget():
        for found_out_once in KEPT:
            found_out_once.cache_clear()

    def devices(*capabilities, triton="3.9.0", refused=""):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: capabilities[index])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=0: f"GPU of {capabilities[index]}")
        with_cuda = {"cuda": True, "cuda_probe": lambda index: refused, "cuda_max_k": 512, "cuda_max_groups": 2048}
        module = SimpleNamespace(**vars(built) | with_cuda)
        monkeypatch.setattr(native, "_load", lambda: (module, None))
        monkeypatch.setattr(triton_runtime, "_version", lambda: triton)
        monkeypatch.setattr(triton_runtime, "installed", lambda: triton is not None)
        # not the variable: Triton, imported without it, would run no kernel on a CPU in the tests that follow
        monkeypatch.setattr(triton_runtime, "interpreted", lambda: False)
        forget()

    yield devices
    forget()


BOTH = ("topk_encode", "threshold_encode")


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (12, 0)])
def test_every_device_from_8_0_on_runs_both_backends(simulate, capability):
    simulate(capability)
    described = env.env_dict()
    for op in BOTH:
        assert described["operations"][op]["cuda"] == described["operations"][op]["triton"] == "yes"
    assert described["hardware"]["capability"] == f"{capability[0]}.{capability[1]}"
    assert described["hardware"]["gpu"] == f"GPU of {capability}"


@pytest.mark.parametrize("capabilities", [((7, 5),), ((6, 1),), ((9, 0), (7, 5))])
def test_an_older_device_is_a_reason_and_the_reference_runs(simulate, capabilities):
    simulate(*capabilities)
    described = env.env_dict()
    old = len(capabilities) - 1
    major, minor = capabilities[old]
    wanted = f"GPU {old}, GPU of {capabilities[old]}, has compute capability {major}.{minor}, and the kernels need 8.0"
    for op in TABLE:
        cells = described["operations"][op]
        assert cells["reference"] == "yes"
        for backend in ("cuda", "triton", "triton_bf16"):
            assert cells[backend].startswith(("not written", wanted)), cells[backend]
        assert pick(TABLE, op, Call("cuda", k=8, n_latents=64, width=8), None)[0] == "reference"
    assert (
        described["packed texts"]["cuda"]["packing='auto'"] == f"padded: {described['operations']['decode']['triton']}"
    )
    assert "CUDA_VISIBLE_DEVICES" in env.env_report()
    with pytest.raises(BackendUnavailable, match="has compute capability"):
        pick(TABLE, "topk_encode", Call("cuda", k=8, n_latents=64, width=8), "triton")


@pytest.mark.parametrize(("triton", "reason"), [
    (None, "triton is not installed"),
    ("3.2.0", "triton 3.2.0 is too old: the kernels need 3.6"),
    ("3.5.1+git", "triton 3.5.1+git is too old"),
    ("2.9", "triton 2.9 is too old"),
])  # fmt: skip
def test_no_triton_or_an_old_one_is_a_reason(simulate, triton, reason):
    simulate((9, 0), triton=triton)
    operations = env.env_dict()["operations"]
    for op in ("decode", *BOTH):
        assert operations[op]["triton"].startswith(reason)
    assert operations["topk_encode"]["cuda"] == "yes"
    assert pick(TABLE, "decode", Call("cuda"), None)[0] == "reference"
    assert reason in env.env_report()


@pytest.mark.parametrize("triton", ["3.6.0", "3.6.0+git1234", "3.10.0", "4.0", None])
def test_releases_that_are_new_enough_and_those_without_a_number(simulate, triton):
    simulate((9, 0), triton=triton or "")
    assert env.env_dict()["operations"]["decode"]["triton"] == "yes"


def test_a_driver_that_is_too_old_for_the_build_is_a_reason(simulate):
    simulate((9, 0), refused="CUDA driver version is insufficient for CUDA runtime version")
    cells = env.env_dict()["operations"]["topk_encode"]
    assert cells["cuda"].startswith("GPU 0 does not take the compiled kernels: CUDA driver version is insufficient")
    assert cells["triton"] == "yes"


def test_the_probe_of_this_machine():
    if native.missing() or not native.module().cuda:
        pytest.skip("built without CUDA")
    assert (native.module().cuda_probe(0) == "") == torch.cuda.is_available()


def test_a_build_without_cuda_says_why_and_what_to_do(simulate, monkeypatch):
    simulate((9, 0))
    native.module().cuda = False
    monkeypatch.setattr(native, "build_record", lambda: {"cuda_reason": "nvcc not found (PATH, /usr/local/cuda/bin)"})
    cells = env.env_dict()["operations"]["segment_pool"]
    assert cells["cuda"].startswith(
        "built without CUDA kernels: nvcc not found (PATH, /usr/local/cuda/bin); install again"
    )


def test_a_device_that_does_not_start_is_a_reason(simulate, monkeypatch):
    simulate((9, 0))

    def broken(index=0):
        raise RuntimeError("unknown error")

    monkeypatch.setattr(torch.cuda, "get_device_capability", broken)
    monkeypatch.setattr(torch.cuda, "get_device_name", broken)
    report = env.env_report()
    assert env.env_dict()["operations"]["decode"]["triton"] == "CUDA does not start: unknown error"
    assert "capability     CUDA does not start: unknown error" in report


def test_attention_that_would_be_used_is_shown_and_why_not_the_others(simulate, monkeypatch):
    simulate((9, 0))
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    kernels = env.env_dict()["packed texts"]["cuda"]
    assert kernels["flash_attn"] == "flash-attn is not installed"
    assert kernels["torch_varlen"] == kernels["flex"] == kernels["text_by_text"] == "yes"
    assert kernels["packing='auto'"] == "torch_varlen, where the model passes its self-check"

    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    kernels = env.env_dict()["packed texts"]["cuda"]
    assert "has no variable-length attention" in kernels["torch_varlen"]
    assert kernels["packing='auto'"].startswith("flex,")

    monkeypatch.setattr(triton_runtime, "installed", lambda: False)
    kernels = env.env_dict()["packed texts"]["cuda"]
    assert kernels["flex"] == "triton is not installed, which compiles it"
    assert kernels["packing='auto'"].startswith("padded: flash_attn: flash-attn is not installed; torch_varlen: torch")
    assert "only where packing='on'" in kernels["packing='auto'"]
    assert kernels["packing='auto'"] in env.env_report()


def test_a_flash_attn_that_does_not_import_is_passed_over(simulate, monkeypatch):
    """Built for another torch, as a rule: the module is there, and its symbols are not."""
    simulate((9, 0))
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    kernels = env.env_dict()["packed texts"]["cuda"]
    assert kernels["flash_attn"].startswith(
        "flash-attn cannot be imported: cannot import name 'flash_attn_varlen_func'"
    )
    assert kernels["packing='auto'"].startswith("torch_varlen")


def test_on_a_cpu_texts_are_padded_and_the_reason_is_shown():
    kernels = env.env_dict()["packed texts"]["cpu"]
    assert kernels["text_by_text"] == "yes"
    assert kernels["packing='auto'"].startswith("padded: on a CPU")
