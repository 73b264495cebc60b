"""What samplers keep of earlier model calls."""
