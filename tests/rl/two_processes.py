"""One rank of a run on two processes: trains on the plan in argv[1], writes what its reward function saw.

Launched by test_trl.py with torch.distributed.run; argv[2] is the folder for the results.
"""

import json
import os
import sys
from pathlib import Path

from saerl_fast.curriculum import BatchPlan
from tests.rl.conftest import problems, train


def main() -> None:
    plan = BatchPlan.load(sys.argv[1])
    out = Path(sys.argv[2])
    seen = train(plan, plan.apply(problems(len(plan.ids)), "id"), out / "trainer")
    (out / f"rank{os.environ['RANK']}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
