"""The model, making one, its directory and the hub, other layouts of weights, and its loss."""
