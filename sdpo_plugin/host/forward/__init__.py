"""The forward pass: log-probs for reference tables, training and evaluation."""
