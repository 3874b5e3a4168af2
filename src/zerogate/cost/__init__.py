"""Parameters and multiply-accumulates of a network, expected and exact."""
