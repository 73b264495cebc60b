"""The real torch_npu wheel on a machine without Ascend hardware; see the README beside this."""
