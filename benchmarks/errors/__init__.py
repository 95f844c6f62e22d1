"""How far hyperbolic packages are from the truth, values and gradients: ``python -m benchmarks.errors``."""
