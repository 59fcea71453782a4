"""Training: freezing, losses, the train chain, the optimizer, and the trainer with its extensions."""
