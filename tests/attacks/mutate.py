"""Plant one bug at a time in a copy of the sources, build, and run the tests that must see it: `make mutate`.

    python -m tests.attacks.mutate [--only WORDS] [--json FILE]

First the tests run on the copy as it is: a test that is red anyway catches nothing. A bug counts as caught when
tests fail, or the process dies or hangs in them; a run that breaks before (no such test, no build) counts as broken.
Ends with 0 when every bug was caught.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from tests.attacks.seeds import SEEDS, Seed
from tests.attacks.source_copy import GREEN, RED, ROOT, SourceCopy

SECONDS = 900.0
"""After which a run of tests counts as hung."""


@dataclass(frozen=True)
class Verdict:
    seed: str
    file: str
    tests: str
    caught: bool
    how: str
    seconds: float


def planted(copy: SourceCopy, seed: Seed) -> tuple[bool, str]:
    """Whether the bug is caught, and by what."""
    before: dict[str, str] = {}
    try:
        for edit in seed.edits:
            text = copy.replace(edit.file, edit.old, edit.new)
            before.setdefault(edit.file, text)
        copy.build()  # always: the module may still hold the seed before
        return judged(copy, seed)
    except (LookupError, RuntimeError) as error:
        return False, f"broken: {error}"
    finally:
        for file, text in before.items():
            copy.restore(file, text)


def judged(copy: SourceCopy, seed: Seed) -> tuple[bool, str]:
    try:
        status, said = copy.test(seed.tests, SECONDS)
    except subprocess.TimeoutExpired:
        return True, "the tests hang"
    if status < 0:
        return True, f"the process dies (signal {-status})"
    if status == RED:
        return True, first_failure(said)
    return False, "not caught" if status == GREEN else f"broken: pytest ended with {status}\n{said}"


def first_failure(said: str) -> str:
    """The name of the test that failed first."""
    for line in said.splitlines():
        if line.startswith(("FAILED ", "ERROR ")):
            return line.split(" ", 1)[1].split(" - ")[0].split("::")[-1]
    return "a test fails"


def unchanged_is_green(copy: SourceCopy, seeds: list[Seed]) -> bool:
    tests = sorted({test for seed in seeds for test in seed.tests})
    status, said = copy.test(tests, 4 * SECONDS)
    if status != GREEN:
        print(f"the tests are red without a bug, so they can catch none:\n{said}")
    return status == GREEN


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Plant bugs, one at a time; is each caught?")
    parser.add_argument("--only", default="", help="only seeds with these words in their names")
    parser.add_argument("--json", type=Path, help="write the verdicts to this file")
    chosen = parser.parse_args(arguments)
    seeds = [seed for seed in SEEDS if chosen.only in seed.name]
    copy = SourceCopy(ROOT / "build" / "mutate")
    copy.build()
    if not unchanged_is_green(copy, seeds):
        return 2
    verdicts = []
    for seed in seeds:
        start = time.monotonic()
        caught, how = planted(copy, seed)
        seconds = round(time.monotonic() - start, 1)
        verdicts.append(Verdict(seed.name, seed.edits[0].file, " ".join(seed.tests), caught, how, seconds))
        print(f"{'caught' if caught else 'MISSED'}  {seed.name}: {how} ({seconds} s)", flush=True)
    if chosen.json:
        content = {"date": date.today().isoformat(), "verdicts": [asdict(verdict) for verdict in verdicts]}
        chosen.json.write_text(json.dumps(content, indent=1) + "\n")
    missed = sum(not verdict.caught for verdict in verdicts)
    print(f"{len(verdicts) - missed} of {len(verdicts)} caught")
    return int(missed > 0 or not verdicts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
