"""Synthetic datasets: images drawn from a seed, with exact annotations."""
