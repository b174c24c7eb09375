"""From a run to what others read: a timm and Hugging Face folder, ONNX, a model card."""
