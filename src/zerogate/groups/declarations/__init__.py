"""Declarations of torch's own ops; `groups.ops` gathers them."""
