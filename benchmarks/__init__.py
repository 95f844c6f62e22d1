"""What hypkernels and hysac cost on this machine, beside the alternatives: see ``docs/benchmarks.md``.

``pytest benchmarks/`` measures, ``python -m benchmarks.report`` renders all results,
``python -m benchmarks.compare A B`` shows what changed between two of them.
"""
