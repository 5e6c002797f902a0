"""Count a PyTorch model's FLOPs, measure them, and say which part of the answer is missing."""

__version__ = "0.1.0"
