"""Where Megatron's tensors live: on this rank's GPU, or without one in the process's memory."""

import torch

IS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if IS_GPU else "cpu")
