"""Measure a trained network on labelled images, and show the results."""
