# SPDX-License-Identifier: Apache-2.0
"""What every test starts from: one thread, fixed seeds, and hypothesis without deadlines."""

import os
import signal

# Before torch is loaded, and for the processes that tests start: those of two workers slow each other down tenfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
# A shell lets what runs in its background ignore Ctrl-C, which some tests press.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The first call of an operator is slow, so deadlines would only measure warm-up.
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "print_blob": True}
settings.register_profile("default", max_examples=50, derandomize=True, **_COMMON)
settings.register_profile("nightly", max_examples=500, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
