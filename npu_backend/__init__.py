"""The modules of jaxllada in PyTorch/torch_npu, for training and sampling on Ascend 910B."""
