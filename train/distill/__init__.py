"""The teacher of a run, and its cached logits."""
