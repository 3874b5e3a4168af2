"""Ordinary torch modules and their tensors: by name, copied, run; nothing here knows a gate."""
