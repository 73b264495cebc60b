"""Objectives of masked diffusion as pure functions."""
