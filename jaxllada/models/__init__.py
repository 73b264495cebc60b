"""The mask predictor as Flax NNX modules: they hold weights and describe a forward pass."""
