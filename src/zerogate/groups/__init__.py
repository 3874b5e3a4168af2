"""Which channels can be removed, and which only together, found by watching the model run once."""
