"""Several processes of one run, and preemption."""
