"""Generated problems: reproducible, right, matched across levels, with faults that are faults."""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import spearmanr

from saerl_fast.demo.problems import DEFECT_SHARE, Problem, generate, generate_with_facts, split_of
from saerl_fast.demo.structures import ORDINALS, Fact, Instance, questions
from saerl_fast.demo.wording import TOPICS, VAGUE
from saerl_fast.errors import InputError

KNOWN = Problem(
    id="held_out-0-0",
    text="First, within every straw, tin boxes count 2. Second, inside each tin, oak boxes number 2. Third, inside each "
    "oak, clay boxes number 2. Fourth, within every clay, brass boxes count 2. Fifth, within every brass, pine boxes "
    "count 2. Sixth, inside each pine, wicker boxes number 6. What number of oak boxes is in each straw?",
    answer="4",
    topic="packing",
    level=2,
    defect="",
)

HIDDEN = 0.3
"""Largest |Spearman| with which length or TF-IDF may predict the level."""


@pytest.fixture(scope="module")
def train() -> list[tuple[Problem, Instance]]:
    return list(generate_with_facts(4000, split="train", seed=3))


@pytest.fixture(scope="module")
def held_out() -> list[tuple[Problem, Instance]]:
    return list(generate_with_facts(2000, split="held_out", seed=3))


def possible_answers(instance: Instance) -> set[int]:
    """Every answer the stated facts allow, found without looking at how the instance was built.

    Facts about the same thing are alternatives; one of each is believed. Empty when a number is missing.
    """
    alternatives = defaultdict(set)
    for fact in instance.facts:
        thing = (fact.subject, fact.other) if fact.form in ("item", "holds") else fact.subject
        alternatives[thing].add(fact)
    worlds = itertools.product(*alternatives.values())
    answers = {solve(list(world), instance.structure, instance.asked) for world in worlds}
    return {answer for answer in answers if answer is not None}


def solve(facts: list[Fact], structure: str, asked: tuple[str, ...]) -> int | None:
    if structure in ("journey", "tally"):
        total = 0
        for fact in facts:
            if not fact.stated:
                return None
            total += -fact.amount if fact.form == "loss" else fact.amount
            if fact.subject == asked[0]:
                return total
        return None
    known: dict[str, int] = {asked[0]: 1} if structure == "nesting" else {}
    for _ in facts:
        for fact in facts:
            if fact.stated and fact.form == "value":
                known[fact.subject] = fact.amount
            elif fact.stated and fact.form == "holds" and fact.subject in known:
                known[fact.other] = known[fact.subject] * fact.amount
            elif fact.stated and fact.form in ("more", "fewer") and fact.other in known:
                sign = 1 if fact.form == "more" else -1
                known[fact.subject] = known[fact.other] + sign * fact.amount
    return known.get(asked[-1])


def untouched(instance: Instance) -> bool:
    things = Counter((fact.subject, fact.other) for fact in instance.facts)
    return max(things.values()) == 1


def test_same_seed_same_problems_whatever_the_count() -> None:
    first = generate(50, seed=7)
    assert first == generate(50, seed=7)
    assert first[20:] == generate(30, seed=7, start=20)
    assert {problem.text for problem in first}.isdisjoint(problem.text for problem in generate(50, seed=8))
    assert generate(0) == []


def test_one_problem_is_known_by_heart() -> None:
    # a change here changes every committed figure: the policy's accuracy, the demo, the model cards
    problem = generate(1, split="held_out", seed=0)[0]
    assert problem == KNOWN


def test_topics_levels_and_shares(train: list[tuple[Problem, Instance]]) -> None:
    problems = [problem for problem, _ in train]
    assert len(TOPICS) >= 8
    assert set(Counter(problem.topic for problem in problems)) == set(TOPICS)
    assert set(Counter(problem.level for problem in problems)) == {1, 2, 3, 4, 5}
    kinds = Counter(problem.defect for problem in problems)
    assert set(kinds) == {"", "missing_number", "contradiction", "wrong_key"}
    for kind in ("missing_number", "contradiction", "wrong_key"):
        share, spread = DEFECT_SHARE / 3, 4 * (DEFECT_SHARE / 3 / len(problems)) ** 0.5
        assert abs(kinds[kind] / len(problems) - share) < spread
    assert {problem.defect for problem in generate(300, defect_share=0)} == {""}


def test_sound_answers_follow_from_the_facts(train: list[tuple[Problem, Instance]]) -> None:
    for problem, instance in train:
        if problem.defect in ("", "wrong_key"):
            assert possible_answers(instance) == {instance.answer}
        if problem.defect == "":
            assert problem.answer == str(instance.answer)
            assert 1 <= int(problem.answer) <= 99


def test_faults_are_faults(train: list[tuple[Problem, Instance]]) -> None:
    for problem, instance in train:
        if problem.defect == "missing_number":
            assert possible_answers(instance) == set()
            assert re.search(rf"\b({'|'.join(VAGUE)})\b", problem.text, re.IGNORECASE)
        if problem.defect == "contradiction":
            assert len(possible_answers(instance)) == 2
        if problem.defect == "wrong_key":
            assert problem.answer != str(instance.answer)
            assert int(problem.answer) >= 1


def test_decoys_use_the_words_of_faults(train: list[tuple[Problem, Instance]]) -> None:
    vague, restated = Counter(), Counter()
    for problem, instance in train:
        vague[problem.defect] += any(not fact.stated for fact in instance.facts)
        things = Counter((fact.subject, fact.other) for fact in instance.facts)
        restated[problem.defect] += max(things.values()) > 1
    assert 0.5 < vague[""] / vague["missing_number"] < 2
    assert 0.5 < restated[""] / restated["contradiction"] < 2


def test_the_text_says_the_facts(train: list[tuple[Problem, Instance]]) -> None:
    for problem, instance in train[:1000]:
        sentences = re.split(r"(?<=\.) ", problem.text)[-len(instance.facts) - 1 : -1]
        assert len(sentences) == len(instance.facts)
        for fact, sentence, ordinal in zip(instance.facts, sentences, ORDINALS, strict=False):
            assert sentence.lower().startswith(f"{ordinal}, ")
            assert fact.subject.lower() in sentence.lower()
            assert fact.other.lower() in sentence.lower()
            assert re.findall(r"\d+", sentence) == ([str(fact.amount)] if fact.stated else [])
        question = problem.text.rsplit(". ", 1)[1]
        assert all(name in question for name in instance.asked)


def test_every_question_of_the_same_facts_is_right(train: list[tuple[Problem, Instance]]) -> None:
    for problem, instance in train[:500]:
        if not problem.defect and untouched(instance):
            assert [question.level for question in questions(instance)] == [1, 2, 3, 4, 5]
            assert questions(instance)[instance.level - 1] == instance
            assert all(possible_answers(question) == {question.answer} for question in questions(instance))


def test_splits_share_neither_texts_nor_facts(
    train: list[tuple[Problem, Instance]], held_out: list[tuple[Problem, Instance]]
) -> None:
    other_seed = list(generate_with_facts(2000, split="held_out", seed=4))
    texts = {problem.text for problem, _ in train}
    keys = {instance.key() for problem, instance in train}
    for problem, instance in held_out + other_seed:
        assert problem.text not in texts
        assert instance.key() not in keys
    # restatements change the facts after the split was decided; every other instance tells its side
    assert all(split_of(instance) == "held_out" for _, instance in held_out if untouched(instance))
    everything = [problem.text for problem, _ in train + held_out + other_seed]
    assert len(set(everything)) == len(everything)


def test_length_does_not_tell_the_level(held_out: list[tuple[Problem, Instance]]) -> None:
    levels = [problem.level for problem, _ in held_out]
    for measure in (len, lambda text: len(text.split())):
        lengths = [measure(problem.text) for problem, _ in held_out]
        assert abs(spearmanr(lengths, levels).statistic) <= HIDDEN


@pytest.mark.parametrize("token", [r"(?u)\b\w\w+\b", r"(?u)\b\w+\b|[.?,]"])
def test_tfidf_does_not_tell_the_level(
    token: str, train: list[tuple[Problem, Instance]], held_out: list[tuple[Problem, Instance]]
) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge

    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=token)
    seen = words.fit_transform([problem.text for problem, _ in train])
    unseen = words.transform([problem.text for problem, _ in held_out])

    def predicts(truth: Callable[[Problem], float], alpha: float) -> float:
        model = Ridge(alpha=alpha).fit(seen, [truth(problem) for problem, _ in train])
        return abs(float(spearmanr(model.predict(unseen), [truth(problem) for problem, _ in held_out]).statistic))

    assert max(predicts(lambda problem: problem.level, alpha) for alpha in (0.3, 3.0, 30.0)) <= HIDDEN
    # the same model finds what the words do tell: the topic
    assert predicts(lambda problem: problem.topic == "bus", 3.0) > 0.5


@pytest.mark.parametrize("topic", sorted(TOPICS))
def test_words_are_as_frequent_at_every_level(topic: str, train: list[tuple[Problem, Instance]]) -> None:
    lengths = defaultdict(list)
    for problem, _ in train:
        if problem.topic == topic and not problem.defect:
            lengths[problem.level].append(len(problem.text.split()))
    means = [np.mean(lengths[level]) for level in range(1, 6)]
    assert max(means) - min(means) < 0.05 * np.mean(means)


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="split"):
        generate(1, split="test")
    with pytest.raises(InputError, match="count"):
        generate(-1)
    with pytest.raises(InputError, match="defect_share"):
        generate(1, defect_share=0.7)
