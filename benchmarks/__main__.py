"""python -m benchmarks is the same as saerl bench; the suite is saerl_fast/bench."""

import sys

from saerl_fast.cli import main

sys.exit(main(["bench", *sys.argv[1:]]))
