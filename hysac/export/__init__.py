"""Models as graphs of other runtimes: ONNX, ``torch.export`` and AOTInductor."""

from hysac.export.exporting import FORMATS, export_model

__all__ = ["FORMATS", "export_model"]
