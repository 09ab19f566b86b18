"""What every test shares: a fixed seed, and no deadline on slow machines."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

settings.register_profile("seqapp", deadline=None)
settings.load_profile("seqapp")


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
