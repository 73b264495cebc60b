"""A training run without its framework: origin, folder, log, guard, loop."""
