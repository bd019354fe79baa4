"""General benchmarks, for forgetting: lm-eval does the measuring."""
