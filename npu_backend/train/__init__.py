"""Optimisation: state, step, loop, checkpoints."""
