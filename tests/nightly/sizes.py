"""A test at two sizes: one for every push, one for the night."""

import os

import pytest

SHARE = float(os.environ.get("SAERL_NIGHTLY_SHARE", "1"))
"""Part of the nightly sizes that is run, where there is no night's time; what was run is written down."""


def daily_and_nightly(name, daily, nightly):
    """Parametrize `name` with the small size, and with the large one under the marker `nightly`."""
    large = max(daily, int(nightly * SHARE))
    return pytest.mark.parametrize(
        name, [pytest.param(daily, id="daily"), pytest.param(large, id="nightly", marks=pytest.mark.nightly)]
    )
