"""Predicts the memory of a training step from its settings; nothing is allocated or compiled."""
