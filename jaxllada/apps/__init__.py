"""Programs for people, written once against the engine protocol."""
