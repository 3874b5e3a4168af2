"""Hydra configurations of the `zerogate` command; `zerogate train --help` lists them."""
