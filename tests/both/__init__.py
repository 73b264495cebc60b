"""Tests that both backends take: a module of a backend's folder imports them, and adds its own."""
