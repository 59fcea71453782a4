"""Learning: what is frozen, the losses, the train chain, and what drives it."""
