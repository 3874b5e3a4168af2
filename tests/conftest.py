"""Test-wide settings."""

import torch

# Small tensors: a second thread costs more than it brings, and several test processes share the machine's cores.
torch.set_num_threads(1)
