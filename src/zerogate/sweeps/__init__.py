"""Many runs: what an engine of sweeps is, one for this machine, and comparisons of searches for tickets."""
