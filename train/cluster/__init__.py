"""Runs of several processes, and preemption."""
