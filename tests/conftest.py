"""Fixtures that several test files share. Runs are told nobody, unless a test wants it."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from wandb_standin import Server, checked

os.environ["WANDB_MODE"] = "disabled"

# A busy machine is no defect: no test fails by the clock.
settings.register_profile("moist", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("moist")


@pytest.fixture
def wandb_server() -> Iterator[Server]:
    """A stand-in for the W&B server; whatever goes against its API fails the test."""
    with checked() as server:
        yield server
