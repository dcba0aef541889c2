"""Every row of the GPU suite runs at a tiny shape, on a device or on a CPU; a wrong result of ours gives no speed."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from saerl_fast.bench import gpu_data, gpu_suite
from saerl_fast.bench.clock import Ring
from saerl_fast.bench.gpu_kmeans import left_open
from saerl_fast.bench.gpu_suite import EFFORT, ROWS, run_gpu_row
from saerl_fast.cli import main
from saerl_fast.errors import BackendUnavailable
from saerl_fast.extract import compiling
from saerl_fast.features import SparseFeatures
from saerl_fast.kernels import native, triton_runtime
from tests.bench.test_suite import SPEEDS

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


def spoil(result):
    """The same result with its numbers off by a hundredth."""
    if isinstance(result, SparseFeatures):
        return dataclasses.replace(result, values=result.values * np.float32(1.01))
    if isinstance(result, torch.Tensor):
        return result * 1.01 if result.is_floating_point() else result
    parts = [spoil(part) for part in result]
    return type(result)(*parts) if hasattr(result, "_fields") else type(result)(parts)


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch):
    """Graphs are run as they are traced: inductor takes a minute."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_proved_and_timed_and_a_wrong_one_is_not(monkeypatch, name):
    if name == "select" and (reason := native.missing()):
        pytest.skip(reason)
    row = ROWS[name]
    (shape,) = row.tiny
    made = row.contest(**shape, device=CPU)
    monkeypatch.setitem(ROWS, name, dataclasses.replace(row, contest=lambda **_: made))
    result = run_gpu_row(name, shape, EFFORT["tiny"], CPU)
    assert result.get("failure") is None
    assert result["exact"] is True
    assert result.keys() >= SPEEDS
    assert json.loads(json.dumps(result)) == result
    wrong = dataclasses.replace(made, ours=lambda: spoil(made.ours()))
    monkeypatch.setitem(ROWS, name, dataclasses.replace(row, contest=lambda **_: wrong))
    spoilt = run_gpu_row(name, shape, EFFORT["tiny"], CPU)
    assert spoilt["exact"] is False
    assert not SPEEDS & set(spoilt)


def test_a_row_without_its_kernels_says_so(monkeypatch):
    def refuse(**_):
        raise BackendUnavailable("topk_encode: only the reference runs on this device")

    monkeypatch.setitem(ROWS, "encode", dataclasses.replace(ROWS["encode"], contest=refuse))
    result = run_gpu_row("encode", ROWS["encode"].tiny[0], EFFORT["tiny"], CPU)
    assert "only the reference" in result["skipped"]


def test_a_row_that_fails_leaves_the_others_their_turn(monkeypatch, tmp_path, capsys):
    made = ROWS["kmeans_iter"].contest(**ROWS["kmeans_iter"].tiny[0], device=CPU)

    def no_room():
        raise ArithmeticError("out of resources: shared memory\nRequired: 300000")

    broken = dataclasses.replace(made, ours=no_room)
    monkeypatch.setitem(ROWS, "kmeans_iter", dataclasses.replace(ROWS["kmeans_iter"], contest=lambda **_: broken))
    file = tmp_path / "gpu.json"
    assert main(["bench", "--suite", "gpu", "--tiny", "--only", "kmeans_iter,encode", "--json", str(file)]) == 1
    failed, timed = json.loads(file.read_text())["results"]
    assert failed["error"].startswith("ArithmeticError: out of resources")
    assert "exact" not in failed
    assert not SPEEDS & set(failed)
    assert timed["exact"] is True
    said = capsys.readouterr().out
    assert "FAILED, no speed: ArithmeticError: out of resources: shared memory Required: 300000" in said
    assert "wrong or failed: kmeans_iter" in said


@pytest.mark.parametrize("name", ["encode_triton", "encode_triton_over_gemm", "threshold_encode_triton"])
def test_the_rows_of_a_backend_ask_for_it_on_a_device(monkeypatch, name):
    """Seen without one: the reason why that backend cannot run there is the row's."""
    monkeypatch.setattr(triton_runtime, "refuses", lambda device: f"no Triton on {device}")
    row = ROWS[name]
    result = run_gpu_row(name, row.quick[0], EFFORT["tiny"], torch.device("cuda"))
    assert result["skipped"].endswith("triton: no Triton on cuda")


def test_the_share_of_rows_that_the_screen_leaves_open():
    if reason := triton_runtime.refuses("cpu"):
        pytest.skip(reason)
    centroids = torch.randn(40, 64, generator=torch.Generator().manual_seed(1))
    between = (centroids[0] + centroids[1]) / 2
    rows = torch.stack([*centroids[:3], between])
    assert left_open(rows, centroids) == {"rows_left_open": 0.25}
    assert left_open(rows, centroids[:5]) == {}


def test_the_command_runs_it_and_refuses_to_pretend(tmp_path, capsys, monkeypatch):
    file = tmp_path / "gpu.json"
    assert main(["bench", "--suite", "gpu", "--tiny", "--only", "encode,mfu", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found["suite"] == "gpu"
    assert found["machine"]["gpu"]
    mfu = found["results"][1]
    assert mfu["tflops"] == pytest.approx(mfu["operations"] / mfu["ours_ms"] / 1e9, rel=1e-3)
    assert "TFLOP/s" in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "--suite", "gpu", "--quick"]) == 2
    assert "torch sees none" in capsys.readouterr().err
    assert main(["bench", "--suite", "gpu", "--tiny", "--only", "speed"]) == 2


def test_the_suite_needs_no_trainer_and_no_sae_library(monkeypatch):
    for name in ("trl", "datasets", "sae_lens"):
        monkeypatch.setitem(sys.modules, name, None)
    result = run_gpu_row("capture", ROWS["capture"].tiny[0], EFFORT["tiny"], CPU)
    assert result["exact"] is True


def test_lengths_are_those_of_the_histogram():
    lengths = gpu_data.problem_lengths(50_000)
    drawn, _ = np.histogram(lengths, gpu_data.TOKEN_EDGES)
    wanted = np.array(gpu_data.TOKEN_COUNTS) / sum(gpu_data.TOKEN_COUNTS)
    np.testing.assert_allclose(drawn / 50_000, wanted, atol=0.01)
    assert sum(gpu_data.TOKEN_COUNTS) == 7472
    assert lengths.mean() == pytest.approx(84.7, rel=0.03)
    assert lengths.min() >= 1
    assert gpu_data.problem_lengths(100, longest=20).max() == 20


def test_operations_are_those_of_a_count_by_hand():
    # one block, one text of 3 tokens: q, o 32x32, k, v 32x16, three products of the mlp 32x64; 6 pairs of tokens
    products = 2 * 3 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
    assert gpu_data.operations_of("tiny", 1, [3]) == products + 2 * 2 * 32 * 6
    # 1.354 GFLOP a token for 14 blocks of Qwen2.5-1.5B at 1,024 tokens (both halves of the attention counted there)
    per_token = gpu_data.operations_of("qwen2.5-1.5b", 14, [1024]) / 1024
    assert per_token == pytest.approx(1.354e9 - 14 * 4 * 1536 * 512 / 2, rel=0.02)


def test_texts_of_the_word_tokenizer_have_the_ids_they_are_made_of():
    tokenizer = gpu_data.word_tokenizer(300)
    ids = gpu_data.random_ids(np.array([5, 9]), 300)
    assert tokenizer([gpu_data.as_text(row) for row in ids])["input_ids"] == [row.tolist() for row in ids]


def test_the_ring_hands_out_the_same_numbers_elsewhere():
    ring = Ring(torch.arange(4.0))
    assert torch.equal(ring.next(), torch.arange(4.0))
    if torch.cuda.is_available():
        ring = Ring(torch.arange(4.0, device="cuda"))
        assert ring.next().data_ptr() != ring.next().data_ptr()


def test_every_row_of_the_gpu_table_is_there():
    assert set(gpu_suite.ROWS) == {
        "encode_over_gemm", "encode_triton_over_gemm", "encode", "encode_triton", "encode_published", "select",
        "threshold_encode", "threshold_encode_triton", "kmeans_iter", "kmeans_iter_dense", "capture", "capture_packed",
        "capture_compiled", "mfu", "featurize_over_forward", "featurize",
    }  # fmt: skip


def test_the_page_lists_every_row_as_measured_or_not_yet():
    """With what has to be reached and what is hoped for; a figure there comes from a results file."""
    text = (ROOT / "docs" / "measured.md").read_text()
    listed = re.findall(r"^- `(\w+)`.*; must: .*; measured: (.*)\.$", text, re.MULTILINE)
    assert {name for name, _ in listed} >= set(gpu_suite.ROWS)
    found = [json.loads(file.read_text()) for file in (ROOT / "benchmarks" / "results").glob("*.json")]
    measured = {row["name"] for one in found if one["suite"] == "gpu" for row in one["results"]}
    for name, state in listed:
        assert (state == "not yet") == (name not in measured), name
