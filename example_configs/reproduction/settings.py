"""The settings of the comparison, chosen by choose.py on seeds 100 to 102, with plain DPO alone, before it was run.

Mean reference-free accuracy of plain DPO on held-out rows after one epoch, by learning rate: 1e-4 0.638, 3e-4 0.676,
1e-3 0.746, 3e-3 0.801, 1e-2 0.795. Three epochs were tried on seed 100 alone and left for their cost: up to 3e-3 they
gave 0.704, 0.782, 0.880, 0.915. β and the batch are the paper's; they were not varied.
"""

from example_configs.reproduction.variants import Settings

CHOSEN = Settings(learning_rate=3e-3, num_epochs=1)

# Said beforehand, too: a second comparison at a third of that learning rate, of these variants (by number).
SECOND_LEARNING_RATE = 1e-3
SECOND_VARIANTS = (0, 3, 4, 8, 12, 17)
