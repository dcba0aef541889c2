"""From texts to activations: tokens and batches, the hook on the model, and the folder results are kept in."""
