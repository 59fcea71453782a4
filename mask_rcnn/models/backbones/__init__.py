"""Backbones and the feature pyramid."""
