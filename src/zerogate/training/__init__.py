"""The command's trainer, on Lightning and Hydra."""
