"""Join the witnesses: what each op's FLOPs are, who says so, and what was missed."""
