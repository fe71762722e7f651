"""Models evaluated by lm-eval while they are in memory. lm_eval itself is imported only where a config asks for it."""
