"""Files and console output."""
