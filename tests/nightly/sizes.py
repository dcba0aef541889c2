"""A test at two sizes: one for every push, one for the night."""

import pytest


def daily_and_nightly(name, daily, nightly):
    """Parametrize `name` with the small size, and with the large one under the marker `nightly`."""
    return pytest.mark.parametrize(
        name, [pytest.param(daily, id="daily"), pytest.param(nightly, id="nightly", marks=pytest.mark.nightly)]
    )
