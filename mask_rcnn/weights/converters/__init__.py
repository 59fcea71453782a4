"""Converters from other programs' parameters to those of the native networks."""
