"""Detection with a trained network: loading, prediction, results, saving."""
