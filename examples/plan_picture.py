"""Draw a plan: which clusters meet in each step, and how hard its problems are.

python examples/plan_picture.py PLAN_DIR picture.svg
"""

import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np

from saerl_fast import BatchPlan


def draw(plan: BatchPlan, path: str) -> None:
    """Upper panel: share of each cluster in each step. Lower panel: predicted difficulty, median and quartiles."""
    steps = list(plan)
    labels = sorted({label for step in steps for label in step.clusters.tolist()})
    shares = np.array([[np.mean(step.clusters == label) for step in steps] for label in labels])
    quartiles = np.array([np.percentile(step.difficulty, [25, 50, 75]) for step in steps]).T
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(9, 4.2), sharex=True, height_ratios=[3, 2], constrained_layout=True
    )
    upper.imshow(shares, aspect="auto", interpolation="nearest", cmap="Blues", vmin=0)
    upper.set(ylabel="cluster", yticks=[])
    lower.fill_between(range(len(steps)), quartiles[0], quartiles[2], alpha=0.3, lw=0)
    lower.plot(quartiles[1], lw=1.2)
    lower.set(ylabel="difficulty", xlabel="step", xlim=(-0.5, len(steps) - 0.5))
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    draw(BatchPlan.load(sys.argv[1]), sys.argv[2])
