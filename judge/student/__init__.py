"""The cross-attention student: its head, lessons, distillation, hardening and export."""
