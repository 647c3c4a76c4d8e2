"""The student as ONNX files, to run where PyTorch is not: written from a student, read by onnxruntime."""
