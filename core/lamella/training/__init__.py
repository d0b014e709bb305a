"""Training: data in batches, a step that is prepared once, the loop over epochs, and what it measured."""
