"""Turn a trace file, however large or damaged, into ops and kernels; without torch."""
