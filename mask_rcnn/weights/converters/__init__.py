"""Converters from other programs' parameters to ours."""
