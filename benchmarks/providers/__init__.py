"""Who computes a case: one module each. A provider whose package is missing says so and is left out."""

from benchmarks.providers import (
    compiled,
    cut_cross_entropy,
    eager,
    geoopt,
    inf_cl,
    liger,
    linear_cross_entropy,
    open_clip,
    own,
    products,
)
from benchmarks.providers.provider import Provider

_MODULES = (
    own,
    eager,
    compiled,
    geoopt,
    inf_cl,
    cut_cross_entropy,
    liger,
    linear_cross_entropy,
    open_clip,
    products,
)

PROVIDERS: dict[str, Provider] = {
    provider.name: provider for module in _MODULES for provider in module.PROVIDERS
}
BASELINE, COMPILED = eager.PROVIDERS[0], compiled.PROVIDERS[0]

__all__ = ["BASELINE", "COMPILED", "PROVIDERS", "Provider"]
