"""The model and its loss; making, saving, loading and uploading models; other layouts of weights."""
