"""figures.json beside committed weights: what was measured, with its date, machine and versions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from saerl_fast.env import env_dict


def write_figures(folder: Path, figures: Mapping[str, Any], *, minutes: float) -> None:
    """minutes: what the training took, on this machine in its present load."""
    env = env_dict()
    made = {
        "date": datetime.now(UTC).date().isoformat(),
        "minutes": round(minutes, 1),
        "hardware": env["hardware"],
        "versions": env["versions"],
    }
    (folder / "figures.json").write_text(json.dumps({"made": made, **figures}, indent=2) + "\n")
