"""The weights of a file or a model: statistics, dead channels, and differences between two."""
