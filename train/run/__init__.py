"""Files that a run keeps on disk, and its output."""
