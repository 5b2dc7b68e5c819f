"""Whether a library does what stages ask of it here: `python -m alignctl.doctor.trial megatron`.

A library of another version than the tested one may be there and lack what is imported from it.
Each trial imports a stage's engine, and has it take a forward step with weights that nobody set.
So no trial imports at the top of this file what another one needs.
"""

import sys
from importlib import import_module

import numpy as np

from alignctl.config.sections import DeepSpeed, Model, Parallel
from alignctl.data.batch import Document, TokenBatch
from alignctl.engines.device import stay_on_loopback

_MODEL = Model(
    family="llama2",
    num_layers=1,
    hidden_size=64,
    num_attention_heads=2,
    num_query_groups=2,
    ffn_hidden_size=64,
    vocab_size=32,
    max_position_embeddings=32,
    rotary_base=10000.0,
    tie_embeddings=False,
)
_TOKENS = (1, 5, 7, 9, 2)


def megatron() -> None:
    """Run a forward pass by Megatron-Core's layers."""
    from alignctl.engines.megatron import cpu as megatron_cpu

    megatron_cpu.load()
    from alignctl.engines.megatron import groups as megatron_groups
    from alignctl.engines.megatron.engine import MegatronEngine

    megatron_groups.initialize([Parallel()], seed=1, timeout_minutes=1)
    engine = MegatronEngine(_MODEL, Parallel(), precision="fp32", seq_length=32, optimizer=None)
    engine.document_outputs([_batch()], 1)


def deepspeed() -> None:
    """Run a forward pass by DeepSpeed, on transformers' layers."""
    from alignctl.engines.deepspeed import engine as engines

    engines.initialize(seed=1, timeout_minutes=1)
    engine = engines.DeepSpeedEngine(
        _MODEL, Parallel(), DeepSpeed(), precision="fp32", optimizer=None
    )
    engine.document_outputs([_batch()], 1)


def vllm() -> None:
    """Import what samples; vLLM's engine, which takes memory on the device, is not started."""
    from alignctl.rollouts import library

    library.set_environment()
    library.be_quiet()
    import_module("alignctl.rollouts.vllm")
    assert import_module("vllm").LLM


def _batch() -> TokenBatch:
    document = Document(np.array(_TOKENS, np.int32), np.ones(len(_TOKENS), np.bool_), row=0)
    return TokenBatch.from_documents([document])


def main(name: str) -> None:
    """Run a trial in a process group of this process alone."""
    from alignctl.rollouts import alone

    stay_on_loopback()
    with alone.process_group():
        {"megatron": megatron, "deepspeed": deepspeed, "vllm": vllm}[name]()


if __name__ == "__main__":
    main(sys.argv[1])
