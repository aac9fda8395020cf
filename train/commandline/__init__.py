"""Command-line options, their ranges, and the terminal."""
