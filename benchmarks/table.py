"""python -m benchmarks.table FILE prints a results file as the Markdown table that docs/measured.md holds."""

import json
import sys
from pathlib import Path
from typing import Any

HEAD = [
    "| row | shape | ours, ms | against | theirs, ms | ratio | ratio in processor time |",
    "|---|---|---|---|---|---|---|",
]


def markdown(found: dict[str, Any]) -> list[str]:
    """The lines of the table."""
    return HEAD + [line_of(result) for result in found["results"]]


def line_of(result: dict[str, Any]) -> str:
    shape = ", ".join(f"{name} {value}" for name, value in result["shape"].items())
    if "ours_ms" not in result:
        return f"| `{result['name']}` | {shape} | not run: {result.get('skipped') or result['failure']} | | | | |"
    name = f"`{result['name']}` ({result['backend']})"
    against = result["baseline"]
    if "ours_peak_mb" in result:
        against += f" (peak memory {result['ours_peak_mb']} against {result['baseline_peak_mb']} MB)"
    return (
        f"| {name} | {shape} | {result['ours_ms']} | {against} | {result['baseline_ms']} "
        f"| {result['ratio']:.2f} | {result['cpu_ratio']:.2f} |"
    )


if __name__ == "__main__":
    print("\n".join(markdown(json.loads(Path(sys.argv[1]).read_text()))))
