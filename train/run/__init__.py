"""A run on disk and on the terminal: workdir, checkpoints, metrics and progress."""
