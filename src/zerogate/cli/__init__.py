"""The command `zerogate`."""
