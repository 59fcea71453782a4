"""Inspection of your own data before training: statistics, suggested settings, checks, contact sheets and splits."""
