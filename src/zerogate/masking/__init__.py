"""Gates inside a forward: where they lie, how they are drawn, how they reach the weights."""
