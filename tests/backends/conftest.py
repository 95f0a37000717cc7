"""Every backend that is installed, on the CPU; the others are skipped with their reason."""

from __future__ import annotations

import pytest

from zenrepro import backends


@pytest.fixture(params=backends.NAMES)
def backend(request: pytest.FixtureRequest) -> backends.Backend:
    try:
        return backends.open(request.param, "cpu")
    except backends.Unavailable as error:
        pytest.skip(str(error))
