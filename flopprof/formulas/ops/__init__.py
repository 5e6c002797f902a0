"""Formulas for PyTorch's own ops, one file per family. Importing a file registers them."""
