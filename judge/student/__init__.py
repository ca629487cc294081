"""The cross-attention student: its head, teacher scores, distillation, adversarial training and ONNX export."""
