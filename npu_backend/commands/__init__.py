"""The verbs of `python -m npu_backend`, one module each."""
