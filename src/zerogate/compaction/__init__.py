"""Removing closed units from a gated model."""
