"""docs/demo.md says what the run gave whose figures lie beside it."""

import json
import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_has_the_figures_of_the_run():
    page = " ".join((DOCS / "demo.md").read_text().split())
    (name,) = set(re.findall(r"docs/(results/[\w.-]+\.json)", page))
    run = json.loads((DOCS / name).read_text())
    grpo, truth, quality = run["grpo"], run["against_true_level"], run["evaluation"]["quality"]
    assert f"{run['seconds']} seconds on two cores of an {run['machine']['cpu']}" in page
    before, plan, shuffled = (
        100 * part["accuracy"] for part in (grpo["plan"]["before"], grpo["plan"]["after"], grpo["shuffled"]["after"])
    )
    assert f"{before:.1f} % of the held-out answers were right before" in page
    assert f"{plan:.1f} after it with the plan and {shuffled:.1f} after it shuffled" in page
    assert f"Spearman of about {truth['predicted_difficulty_of_unlabelled_rows']:.1f}" in page
    assert f"labels themselves have {truth['labels']:.2f}" in page
    assert f"SAE features reach an AUC of {quality['sae']:.2f}, TF-IDF {quality['tfidf']:.2f}" in page
    assert run["filtered"] is False
    assert run["machine"]["versions"]["torch"]
