"""Objectives that learn from images alone, each against upstream's."""
