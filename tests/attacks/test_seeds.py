"""The seeded bugs fit the sources as they are now. Whether each is caught: `make mutate`, which takes minutes."""

from pathlib import Path

import pytest

from tests.attacks.seeds import SEEDS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: seed.name)
def test_a_seed_fits_the_sources(seed):
    if not (ROOT / "csrc").exists():
        pytest.skip("needs the source tree")
    for edit in seed.edits:
        found = (ROOT / edit.file).read_text().count(edit.old)
        assert found == 1, f"{edit.file} has changed: give the seed the line that stands now for {edit.old!r}"
        assert edit.new != edit.old
    for test in seed.tests:
        assert (ROOT / test.split("::")[0]).exists()


def test_seeds_are_told_apart():
    assert len({seed.name for seed in SEEDS}) == len(SEEDS) >= 10
