"""Readers of file formats, which decode bytes to arrays and execute no code from a file."""
