"""Tests that need a GPU. `scripts/gpu_acceptance --rehearse` runs their bodies on the CPU."""
