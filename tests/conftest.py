"""What every test shares: a fixed seed, and no deadline on slow machines.

Property tests try the same examples each time, so that what passes here passes elsewhere;
``HYPOTHESIS_PROFILE=explore`` looks for new ones.
"""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

settings.register_profile("seqapp", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "seqapp"))


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
