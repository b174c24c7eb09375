"""From a run to what others read: a timm and Hugging Face folder, ONNX, a model card."""

from supmim_scale.export.export import export_run

__all__ = ["export_run"]
