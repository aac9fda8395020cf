"""Export a run: weights, programs, and what is written beside them."""
