"""Readers of file formats: bytes to arrays; no reader executes anything from a file."""
