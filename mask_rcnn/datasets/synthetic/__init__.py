"""Synthetic datasets: images generated from a seed, with exact annotations."""
