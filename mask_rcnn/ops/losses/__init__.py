"""Losses as weighted sums, each one differentiable function."""
