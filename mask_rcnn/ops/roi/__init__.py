"""RoI pooling operations."""
