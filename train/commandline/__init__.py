"""Options of the commands, and the terminal that they run in."""
