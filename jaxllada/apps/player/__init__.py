"""Playback of traces outside the terminal: a page, pictures, an animation."""
