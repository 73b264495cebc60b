"""Configuration as frozen dataclasses; one file, `load.py`, reads YAML and flags."""
