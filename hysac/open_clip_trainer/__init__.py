"""A hyperbolic model in open_clip's own training program: ``python -m hysac.open_clip_trainer``.

It runs ``open_clip_train.main`` of open_clip 3.3 with its flags, its data and its reports, and replaces what
must be replaced: the model, the loss, the validation and, for quadruplets, the data. open_clip is changed
only while it runs.
"""
