"""Drop-ins for other packages' geometry; nothing here is imported before it is asked for.

- :mod:`hypkernels.compat.meru`: the ``lorentz.py`` of MERU, HyCoCLIP, HySAC, ATMG, UNCHA, PHyCLIP and HAC;
  :mod:`hypkernels.compat.meru_reference` the same with the published clamps.
- :func:`patch`: the same, put into an installed package.
- :mod:`hypkernels.compat.geoopt`: geoopt's ``Lorentz`` and ``PoincareBall``; needs geoopt.
"""

from hypkernels.compat.patching import Patch, patch

__all__ = ["Patch", "patch"]
