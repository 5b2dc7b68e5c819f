"""DeepSpeed, as it is to be imported: for this machine's device, and without compiling anything."""

import logging
import os
import warnings

import torch

if not torch.cuda.is_available():
    # Otherwise it looks for accelerators, and settles on CUDA where it finds a driver.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of libraries that it can use and that are not there
    import deepspeed
    from deepspeed.accelerator import get_accelerator
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
    from deepspeed.utils import logger

if not torch.cuda.is_available():
    # It refuses float16 on CPUs that are slow at it; here they are for trying things out.
    type(get_accelerator()).is_fp16_supported = lambda _: True
# Collectives in shared memory for inference would be compiled when a process group is joined.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
warnings.filterwarnings(
    "ignore", message="`torch.distributed.*` is deprecated", category=FutureWarning
)
# It tells at length how it is set up, several lines for each engine and rank.
logger.setLevel(logging.WARNING)

__all__ = ["BF16_Optimizer", "DynamicLossScaler", "deepspeed"]
