"""Layers shared by the backbones and heads."""
