"""Graphs of three vocabularies (captured PyTorch, ONNX, MIL) run op by op, side by side."""
