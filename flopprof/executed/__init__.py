"""What the hardware executed: counter files read, turned into FLOPs and bytes, joined to a run."""
