"""ceilings."""
