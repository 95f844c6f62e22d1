"""Shared device code of the Triton kernels and its host side. Imported only where kernels run."""
