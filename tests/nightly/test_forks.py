"""Children forked after the parent has used worker threads compute the parent's bits, and none hangs.

1 fork of every kernel daily, 10 nightly: more than 200 in all.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.nightly.kernel_calls import kernel_calls
from tests.nightly.sizes import daily_and_nightly

ROOT = Path(__file__).parents[2]
SECONDS = 20
"""After which a child counts as hung; it computes for milliseconds."""


@daily_and_nightly("forks", 1, 10)
def test_forked_children_compute_the_same_and_do_not_hang(forks, record_property):
    run = subprocess.run(
        [sys.executable, "-m", "tests.nightly.forking", str(forks), str(SECONDS)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    counts = {name: list(map(int, numbers)) for name, *numbers in map(str.split, run.stdout.splitlines())}
    assert counts == {name: [forks, 0, 0] for name in kernel_calls()}, run.stderr
    record_property("forks", forks * len(counts))
