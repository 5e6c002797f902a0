"""One call of a model watched: module hooks, the profiler, and everything left as it was."""
