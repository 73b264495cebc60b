"""The mask predictor as torch modules: they hold weights and describe a forward pass."""
