"""Every row runs at a tiny shape; a wrong result of ours gives no speed."""

import dataclasses
import sys

import pytest
import torch

from saerl_fast.bench import suite
from saerl_fast.bench.suite import EFFORT, ROWS, run_row, run_suite
from saerl_fast.errors import InputError
from saerl_fast.kernels import native

NEED_COMPILED = {"select", "encode_fp32_over_gemm"}
SPEEDS = {"ours_ms", "baseline_ms", "ratio", "ours_cpu_ms", "baseline_cpu_ms", "cpu_ratio", "all_baselines_ms"}


@pytest.fixture(scope="module")
def tiny():
    reported = []
    found = run_suite("tiny", report=reported.append)
    assert reported == found["results"]
    return found


@pytest.fixture
def compiled(name):
    if name in NEED_COMPILED and (reason := native.missing()):
        pytest.skip(reason)


def spoil(result):
    """The same result with its numbers off by a thousandth."""
    if isinstance(result, torch.Tensor):
        return result * 1.001
    parts = [part * 1.001 if part.is_floating_point() else part for part in result]
    return type(result)(*parts) if hasattr(result, "_fields") else tuple(parts)


def spoil_row(monkeypatch, name):
    row = ROWS[name]

    def contest(**shape):
        true = row.contest(**shape)
        return dataclasses.replace(true, ours=lambda: spoil(true.ours()))

    monkeypatch.setitem(ROWS, name, dataclasses.replace(row, contest=contest))


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.usefixtures("compiled")
def test_a_row_is_proved_and_timed(tiny, name):
    results = [result for result in tiny["results"] if result["name"] == name]
    assert len(results) == len(ROWS[name].tiny)
    for result in results:
        assert result.get("skipped") is None
        assert result["exact"] is True
        assert result.keys() >= SPEEDS
        assert result["rounds"] == EFFORT["tiny"].rounds
        assert result["ratio"] == pytest.approx(result["baseline_ms"] / result["ours_ms"], rel=2e-3)
        assert result["baseline_ms"] == min(result["all_baselines_ms"].values())


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.usefixtures("compiled")
def test_a_wrong_result_gives_no_speed(monkeypatch, name):
    spoil_row(monkeypatch, name)
    result = run_row(name, ROWS[name].tiny[0], EFFORT["tiny"], threads=1)
    assert result["exact"] is False
    assert result["failure"]
    assert not SPEEDS & set(result)
    assert suite.failures([result]) == [name]


def test_the_machine_is_described(tiny):
    about = tiny["machine"]
    assert about.keys() >= {"cpu", "cores", "threads", "isa", "gpu", "versions", "date", "commit", "load_at_start"}
    assert about["versions"]["torch"] == torch.__version__
    assert "load_at_end" in about


@pytest.mark.parametrize("name", ["select"])
@pytest.mark.usefixtures("compiled")
def test_select_runs_at_one_thread_and_the_number_is_put_back(monkeypatch, name):
    seen = []
    row = ROWS[name]

    def contest(**shape):
        true = row.contest(**shape)
        return dataclasses.replace(true, ours=lambda: (seen.append(torch.get_num_threads()), true.ours())[1])

    monkeypatch.setitem(ROWS, name, dataclasses.replace(row, contest=contest))
    before = torch.get_num_threads()
    result = run_row(name, row.tiny[0], EFFORT["tiny"], threads=2)
    assert set(seen) == {1}
    assert result["threads"] == 1
    assert torch.get_num_threads() == before


def test_memory_is_measured_against_sae_lens(tiny):
    (result,) = [result for result in tiny["results"] if result["name"] == "encode_vs_sae_lens"]
    assert {"ours_peak_mb", "baseline_peak_mb"} <= set(result) or "memory" in result


def test_without_sae_lens_the_row_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "sae_lens.saes.topk_sae", None)
    result = run_row("encode_vs_sae_lens", ROWS["encode_vs_sae_lens"].tiny[0], EFFORT["tiny"], threads=1)
    assert "sae-lens is needed" in result["skipped"]
    assert "exact" not in result
    assert not SPEEDS & set(result)


@pytest.mark.parametrize("name", ["select", "encode_fp32_over_gemm"])
def test_without_the_compiled_kernels_the_row_says_so(monkeypatch, name):
    monkeypatch.setattr(native, "missing", lambda: "no compiler was found")
    result = run_row(name, ROWS[name].tiny[0], EFFORT["tiny"], threads=1)
    assert "no compiler was found" in result["skipped"]
    assert not SPEEDS & set(result)


def test_an_unknown_row_is_named():
    with pytest.raises(InputError, match=r"no rows named \['speed'\].*select, encode"):
        run_suite("tiny", only=["select", "speed"])


@pytest.fixture
def real_activations(tmp_path):
    """A file of activations that a small TopK SAE reads, and the folder of this SAE."""
    from safetensors.torch import save_file

    from saerl_fast.bench.data import encoder
    from saerl_fast.formats import save_sae
    from saerl_fast.sae import SAE

    made = encoder(50, 24, 300)
    sae = SAE(made.w_enc, made.b_enc, 2 * made.w_enc, made.b_dec, kind="topk", k=8, rescale_by_decoder_norm=True)
    save_sae(sae, tmp_path / "sae")
    save_file({"activations": made.x}, tmp_path / "x.safetensors")
    return suite.Real(activations=str(tmp_path / "x.safetensors"), sae=str(tmp_path / "sae"))


def test_encode_rows_on_real_activations(real_activations):
    found = run_suite("tiny", only=["encode"], real=real_activations)["results"]
    assert [result["shape"] for result in found[1:]] == [
        {"massive": massive, "activations": "x.safetensors", "sae": "sae"} for massive in (0, 4)
    ]
    for result in found[1:]:
        assert result["exact"] is True
        assert (result["rows"], result["width"], result["latents"], result["k"]) == (50, 24, 300, 8)


def test_massive_channels_are_made_and_decoder_norms_folded(real_activations):
    from saerl_fast.bench.activations import reading
    from saerl_fast.formats import load_sae

    plain, massive = (reading(real_activations.activations, real_activations.sae, number) for number in (0, 4))
    assert ((massive.encoder.x / plain.encoder.x).median(dim=0).values > 50).nonzero().flatten().tolist() == [
        0,
        6,
        12,
        18,
    ]
    sae = load_sae(real_activations.sae)
    codes = sae.encode(plain.encoder.x)
    inputs = plain.encoder
    h = (inputs.x - inputs.b_dec) @ inputs.w_enc.T + inputs.b_enc
    torch.testing.assert_close(codes.values, h.topk(8, dim=1).values.clamp(min=0), rtol=1e-4, atol=1e-4)


def test_another_tensor_or_kind_is_refused(real_activations, tmp_path):
    from safetensors.torch import save_file

    from saerl_fast.bench.activations import reading
    from saerl_fast.errors import FormatError

    save_file({"x": torch.zeros(3, 24)}, tmp_path / "y.safetensors")
    with pytest.raises(FormatError, match="unexpected tensors"):
        reading(str(tmp_path / "y.safetensors"), real_activations.sae, 0)
