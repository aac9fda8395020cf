"""Tests of the self-supervised objectives against upstream's."""
