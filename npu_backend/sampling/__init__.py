"""Reverse process: from a canvas of masks to tokens."""
