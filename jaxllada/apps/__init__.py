"""Programs for people, written once for both packages: they need no framework, only an engine."""
