"""The formats of checkpoints, each as lazy tensors and as a stream."""
