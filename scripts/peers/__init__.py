"""What `scripts/bench_peers.py` is made of: cases, tools, processes, verdicts, the page."""
