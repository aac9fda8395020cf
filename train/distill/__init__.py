"""The teacher in distillation, and its cached logits."""
