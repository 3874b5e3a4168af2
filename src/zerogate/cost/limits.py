"""Limits of the tables that costs are computed from, each with what happens beyond it."""

from __future__ import annotations

MAX_TABLE_ENTRIES = 200_000
"""Edges in the tables of `liveness`. Beyond, the stretches between post-dominators have no tables of their own; one table
runs from every group to the end of the network. Counts stay exact. An expected cost then neglects that paths which meet
share what comes after, which makes groups live too often, and takes as many rounds as the network is deep."""

MAX_DIRECT_ENTRIES = 200_000
"""Probabilities that enter the first round of `closed_form` one by one. Beyond, the first round starts from the products of
whole groups, as all later rounds do: one round more, and the same values."""

TINY = 1e-30
"""Stand-in for a probability of 0 in products, so that their derivatives can divide by it; vanishes beside 1 in float64.
Eleven of them multiply to 0, which gives a derivative of 0 in place of one below 1e-300."""
