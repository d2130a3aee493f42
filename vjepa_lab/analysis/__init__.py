"""Why: gradients, representations, motion, robustness, throughput. Each study yields rows, and a verdict computed from them."""
