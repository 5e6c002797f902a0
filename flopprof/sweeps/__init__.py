"""A model over a grid of settings: each cell in a process of its own, kept as it is done."""
