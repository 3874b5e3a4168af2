"""The knife: which indices of which tensors stay, and a model cut to that. Knows no gate."""
