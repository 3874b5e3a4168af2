"""Test-wide settings."""

import torch
from hypothesis import HealthCheck, settings

# Small tensors: a second thread costs more than it brings, and several test processes share the machine's cores.
torch.set_num_threads(1)

# Machines are shared, and the first text that is drawn in a fresh clone builds tables of characters for seconds.
settings.register_profile("zerogate", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("zerogate")
