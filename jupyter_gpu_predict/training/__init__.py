"""Models learned from many kernels' traces: examples, training, scores, and which one serves."""
