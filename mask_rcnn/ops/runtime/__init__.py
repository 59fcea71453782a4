"""Threads, devices, kernels and caches that the operations share."""
