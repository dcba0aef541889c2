"""The committed policy and its SAE are what their model cards say."""

import itertools
import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import sparse
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler

from saerl_fast.demo.policy import NAME, POLICY, SAE_FOLDER, answer, load_policy
from saerl_fast.demo.problems import Problem, generate
from saerl_fast.demo.train_sae import CONTEXT, D_SAE, LAYER, K
from saerl_fast.demo.wording import TOPICS
from saerl_fast.extract.hooks import block_output
from saerl_fast.extract.reader import make_reader
from saerl_fast.extract.stream import ActivationStream
from saerl_fast.featurizer import featurize
from saerl_fast.formats import load_sae
from saerl_fast.rl.verify import is_correct
from saerl_fast.sae import sanity

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
def solved() -> list[tuple[Problem, bool]]:
    """1,000 sound held-out problems that no figure was taken from, and whether a drawn answer was right."""
    model, tokenizer = load_policy()
    problems = generate(1000, split="held_out", seed=1, defect_share=0.0)
    completions = answer(model, tokenizer, [problem.text for problem in problems], seed=3)
    return [(problem, is_correct(text, problem.answer)) for problem, text in zip(problems, completions, strict=True)]


def rate(right: Iterable[bool]) -> tuple[float, float]:
    """Share of right answers and its standard error."""
    found = list(right)
    share = sum(found) / len(found)
    return share, math.sqrt(share * (1 - share) / len(found))


def test_solves_some_and_less_the_higher_the_level(solved: list[tuple[Problem, bool]]) -> None:
    assert 0.2 <= rate(right for _, right in solved)[0] <= 0.6
    # the card's figures put these gaps at 6 and 4 standard errors of 1,000 problems: two must be left of them
    groups = [rate(right for problem, right in solved if problem.level in levels) for levels in ((1,), (2, 3), (4, 5))]
    for (easier, error), (harder, other) in itertools.pairwise(groups):
        assert easier - harder > 2 * math.hypot(error, other)


def test_every_topic_is_learned_and_falls_with_the_level(solved: list[tuple[Problem, bool]]) -> None:
    for topic in TOPICS:
        own = [(problem.level, right) for problem, right in solved if problem.topic == topic]
        # a guess is right in 3 of 100; the topic least learned has 27
        assert rate(right for _, right in own)[0] >= 0.15, topic
        found = spearmanr(*zip(*own, strict=True))
        assert found.statistic < 0, topic


def test_accuracy_is_what_the_card_says(solved: list[tuple[Problem, bool]]) -> None:
    figures = json.loads((POLICY / "figures.json").read_text())
    assert {"date", "hardware", "versions"} <= set(figures["made"])
    said, measured = figures["sampled"]["overall"], rate(right for _, right in solved)[0]
    # two samples of one policy, 1,000 here and 4,000 there: three standard errors of the difference
    assert abs(measured - said) < 3 * (said * (1 - said) * (1 / 1000 + 1 / 4000)) ** 0.5


def test_the_sae_fits_the_policy() -> None:
    sae = load_sae(SAE_FOLDER)
    assert (sae.d_sae, sae.k, sae.model_name) == (D_SAE, K, NAME)
    reader = make_reader(POLICY, sae, device="cpu")
    assert reader.hook == block_output(LAYER)
    texts = [problem.text for problem in generate(300, split="held_out", seed=5)]
    rows = next(ActivationStream(texts, reader, batch_rows=8192, buffer_rows=16_384, max_length=CONTEXT))
    found = sanity(sae, rows)
    said = json.loads((SAE_FOLDER / "figures.json").read_text())
    assert found.explained_variance == pytest.approx(said["explained_variance"], abs=0.02)
    assert found.l0 == pytest.approx(K, abs=0.5)


def test_sae_features_tell_the_level_and_words_do_not() -> None:
    """What the difficulty proxy can find: from 1,000 problems with their true levels, in 1,000 others, by topic."""
    problems = generate(2000, seed=5)
    texts = [problem.text for problem in problems]
    features = featurize(texts, POLICY, SAE_FOLDER, device="cpu", progress=False)
    level, topic = (np.array([getattr(problem, name) for problem in problems]) for name in ("level", "topic"))
    words = TfidfVectorizer(ngram_range=(1, 2)).fit(texts[:1000]).transform(texts)
    found = {
        "sae": within_topics(features.to_scipy().sqrt(), level, topic),
        "words": within_topics(words, level, topic),
    }
    # 1,000 tested rows: a score of guessing has a standard error of 0.032
    assert found["sae"] > 4 * 0.032
    assert abs(found["words"]) < 3 * 0.032


def within_topics(rows: sparse.csr_matrix, level: np.ndarray, topic: np.ndarray) -> float:
    """Mean over topics of the Spearman correlation of level and its ridge prediction on the second half of the rows."""
    half = len(level) // 2
    model = make_pipeline(MaxAbsScaler(), RidgeCV(np.logspace(-1, 3, 5))).fit(rows[:half], level[:half])
    predicted, level, topic = model.predict(rows[half:]), level[half:], topic[half:]
    return float(np.mean([spearmanr(predicted[topic == name], level[topic == name]).statistic for name in TOPICS]))
