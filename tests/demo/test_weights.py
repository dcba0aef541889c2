"""The committed policy and its SAE are what their model cards say."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr

from saerl_fast.demo.policy import NAME, POLICY, SAE_FOLDER, answer, load_policy
from saerl_fast.demo.problems import generate
from saerl_fast.demo.train_sae import CONTEXT, D_SAE, LAYER, K
from saerl_fast.extract.hooks import block_output
from saerl_fast.extract.reader import make_reader
from saerl_fast.extract.stream import stream_activations
from saerl_fast.formats import load_sae
from saerl_fast.rl.verify import is_correct
from saerl_fast.train_sae import sanity

LARGEST = 4 * 2**20
"""Bytes of everything that is committed."""


def files() -> list[Path]:
    return [file for folder in (POLICY, SAE_FOLDER) for file in folder.iterdir()]


def test_small_and_in_fp16() -> None:
    assert sum(file.stat().st_size for file in files()) <= LARGEST
    for file in (POLICY / "model.safetensors", SAE_FOLDER / "sae_weights.safetensors"):
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}
    for folder in (POLICY, SAE_FOLDER):
        assert (folder / "README.md").is_file()
        assert (folder / "figures.json").is_file()


@pytest.fixture(scope="module")
def solved() -> tuple[list[int], list[bool]]:
    """Level of each of 1,000 sound held-out problems, and whether a drawn answer was right."""
    model, tokenizer = load_policy()
    problems = generate(1000, split="held_out", seed=1, defect_share=0.0)
    completions = answer(model, tokenizer, [problem.text for problem in problems], seed=3)
    right = [is_correct(text, problem.answer) for problem, text in zip(problems, completions, strict=True)]
    return [problem.level for problem in problems], right


def test_solves_some_and_level_one_most(solved: tuple[list[int], list[bool]]) -> None:
    levels, right = solved
    assert 0.2 <= sum(right) / len(right) <= 0.6
    found = spearmanr(levels, right)
    assert found.statistic < 0
    assert found.pvalue < 0.02
    first = [correct for level, correct in zip(levels, right, strict=True) if level == 1]
    assert sum(first) / len(first) > sum(right) / len(right) + 0.05


def test_accuracy_is_what_the_card_says(solved: tuple[list[int], list[bool]]) -> None:
    _, right = solved
    said = json.loads((POLICY / "figures.json").read_text())["sampled"]["overall"]
    measured = sum(right) / len(right)
    # two samples of one policy, 1,000 here and 2,000 there: three standard errors of the difference
    assert abs(measured - said) < 3 * (said * (1 - said) * (1 / 1000 + 1 / 2000)) ** 0.5


def test_the_sae_fits_the_policy() -> None:
    sae = load_sae(SAE_FOLDER)
    assert (sae.d_sae, sae.k, sae.model_name) == (D_SAE, K, NAME)
    reader = make_reader(POLICY, sae, device="cpu")
    assert reader.hook == block_output(LAYER)
    texts = [problem.text for problem in generate(300, split="held_out", seed=5)]
    rows = next(stream_activations(texts, reader, batch_rows=8192, buffer_rows=16_384, max_length=CONTEXT))
    found = sanity(sae, rows)
    said = json.loads((SAE_FOLDER / "figures.json").read_text())
    assert found.explained_variance == pytest.approx(said["explained_variance"], abs=0.02)
    assert found.l0 == pytest.approx(K, abs=0.5)
