"""The torchrun jobs: Megatron and vLLM in the same processes, one case after the other.

`results = jobs.run(folder, cases)`, with cases of one world size.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alignctl.config.rollout import Rollout as Settings
from alignctl.config.sections import Lora, Optimizer, Parallel
from alignctl.data.batch import IGNORE, Document, TokenBatch
from alignctl.launch.job import Job, worker_environment
from alignctl.rollouts.samples import Completion, Generated, Request, Sampling
from tests.rollouts.cases import Case

ROOT = Path(__file__).parents[2]
VOCAB_SIZE = 509
SEQ_LENGTH = 96
STOP = 2
FAMILIES: dict[str, dict[str, Any]] = {
    "llama3": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "mistral": {"model_type": "mistral", "head_dim": 64, "sliding_window": None},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 64},
}
"""Grouped queries in all; heads twice as wide as usual in two of them."""
SAMPLING = Sampling(max_new_tokens=20, stop_token_ids=(STOP,))
Result = dict[str, Any]


def make_models(folder: Path) -> Path:
    """Tiny models with heads of 32, as vLLM's attention on a CPU wants them, and sharp logits."""
    import torch
    from transformers import BloomConfig, BloomForCausalLM, LlamaConfig, LlamaForCausalLM

    shape = {"vocab_size": VOCAB_SIZE, "hidden_size": 128, "initializer_range": 0.1}
    for number, (name, groups) in enumerate(
        {"llama-mha": 4, "llama-gqa": 2, "llama-tied": 2, "bloom": 4}.items()
    ):
        torch.manual_seed(number)
        model: Any
        if name == "bloom":
            model = BloomForCausalLM(BloomConfig(n_layer=2, n_head=4, **shape))
        else:
            config = LlamaConfig(
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=groups,
                intermediate_size=160,
                max_position_embeddings=SEQ_LENGTH,
                tie_word_embeddings=name == "llama-tied",
                **shape,
            )
            model = LlamaForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        model.save_pretrained(folder / name)
    for name, told in FAMILIES.items():
        model = _family_model(name, told)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        model.save_pretrained(folder / name)
    return folder


def _family_model(name: str, told: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(sum(name.encode()))
    config = AutoConfig.for_model(
        **told,
        num_hidden_layers=2,
        hidden_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=160,
        max_position_embeddings=SEQ_LENGTH,
        vocab_size=VOCAB_SIZE,
        initializer_range=0.1,
    )
    return AutoModelForCausalLM.from_config(config)


def run(folder: Path, cases: Sequence[Case]) -> dict[str, Result]:
    """Runs cases of one world size; results by the cases' names."""
    (world,) = {case.world for case in cases}
    told, results = folder / f"cases_{world}.json", folder / f"results_{world}.json"
    told.write_text(json.dumps([case.model_dump() for case in cases]))
    environment = os.environ | dict(worker_environment(2, os.environ)) | {"OMP_NUM_THREADS": "1"}
    args = (str(folder), str(told), str(results))
    job = Job("tests.rollouts.jobs", args, nproc=world, master_port=0)
    done = subprocess.run(
        job.command(), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500
    )
    if done.returncode != 0:
        raise RuntimeError(f"the job of {world} ranks failed:\n{done.stderr[-6000:]}")
    found: dict[str, Result] = json.loads(results.read_text())
    return found


# ---- what every rank runs ----


def main(folder: Path, told: Path, results: Path) -> None:
    import torch
    import torch.distributed as dist

    from alignctl.engines.megatron.groups import initialize, lay_out

    torch.set_num_threads(1)
    initialize([Parallel()], seed=1, timeout_minutes=2)
    found: dict[str, Result] = {}
    for case in [Case(**each) for each in json.loads(told.read_text())]:
        lay_out([Parallel(tp=case.tp, pp=case.pp)], seed=1, timeout_minutes=2)
        mine = course(case, folder)
        everybody: list[Result] = [{} for _ in range(case.world)]
        dist.all_gather_object(everybody, mine)
        found[case.name] = {key: value for one in everybody for key, value in one.items()}
    if dist.get_rank() == 0:
        results.write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def requests() -> list[Request]:
    """Six prompts of one to six tokens, four completions of each."""
    return [
        Request(np.arange(5, 6 + group, dtype=np.int32) * 7, seed=100 * group + member, group=group)
        for group in range(6)
        for member in range(4)
    ]


def crowd() -> list[Request]:
    """More prompt tokens than vLLM reads in one forward pass, on each of two replicas."""
    return [
        Request((np.arange(40, dtype=np.int32) * 3 + number) % 100 + 1, seed=number, group=number)
        for number in range(230)
    ]


def course(case: Case, folder: Path) -> Result:
    """Push, sample, train, sample, push, sample; then what can go wrong."""
    import torch

    from alignctl.algorithms.cross_entropy import CrossEntropy
    from alignctl.checkpoints.find import find
    from alignctl.engines.megatron.engine import MegatronEngine
    from alignctl.engines.megatron.weights import hf_weights
    from alignctl.rollouts.vllm import Rollout

    source = find(folder / case.model, vocab_divisor=2)
    engine = MegatronEngine(
        source.model,
        Parallel(tp=case.tp, pp=case.pp),
        precision="fp32",
        seq_length=SEQ_LENGTH,
        optimizer=Optimizer(lr=1e-2),
        lora=Lora(rank=4) if case.has_lora else None,
    )
    engine.load_weights(source)
    engine.create_optimizer()
    found: Result = {"different": _different(engine, folder / case.model)}
    rollout = Rollout(
        source.hf_config,
        Settings(tp=case.rollout_tp, max_new_tokens=20, kv_cache_gib=0.0625, verify_push=True),
        max_model_len=SEQ_LENGTH,
        precision="fp32",
        seed=0,
        timeout_minutes=2,
    )
    found["before_any_push"] = _message(lambda: rollout.generate(requests(), SAMPLING))
    before = torch.get_rng_state()
    rollout.load_weights(hf_weights(engine))
    first, again = (rollout.generate(requests(), SAMPLING) for _ in range(2))
    found["is_random_state_kept"] = torch.equal(before, torch.get_rng_state())
    found |= _told("first", engine, first) | {"again": _tokens(again)}
    rows = np.arange(3, 60, dtype=np.int32)
    batch = TokenBatch.from_documents([Document(rows, np.ones(len(rows), np.bool_), 0)])
    for _ in range(3):  # the first moves B of adapters alone
        engine.train_step([batch], CrossEntropy(), learning_rate=1e-2)
    found |= _told("stale", engine, first)
    rollout.sleep()
    rollout.wake()
    rollout.load_weights(hf_weights(engine))
    second = rollout.generate(requests(), SAMPLING)
    found |= _told("second", engine, second)
    warm = Sampling(max_new_tokens=20, stop_token_ids=(STOP,), temperature=0.6)
    found |= _told("warm", engine, rollout.generate(requests(), warm), temperature=0.6)
    few = Sampling(max_new_tokens=20, stop_token_ids=(STOP,), top_k=1)
    found["greedy_logprobs"] = [
        float(abs(each.logprobs).max()) for each in _complete(rollout.generate(requests(), few))
    ]
    found["version"] = rollout.version
    crowded = rollout.generate(crowd(), Sampling(max_new_tokens=2, stop_token_ids=(STOP,)))
    found["crowded_counts"] = [crowded.num_retried, crowded.num_failed]
    found |= _stopping(rollout, second) | _poisoned(rollout) | _pushes(rollout, engine)
    rollout.close()
    return found


def _different(engine: Any, folder: Path) -> list[str]:
    """Names of the tensors that do not come out as they are in the folder, bit by bit."""
    import torch
    from safetensors.torch import load_file

    from alignctl.engines.megatron.weights import hf_weights

    theirs = load_file(folder / "model.safetensors")
    ours = {name: tensor.clone() for name, tensor in hf_weights(engine)}
    return sorted(
        name
        for name in ours.keys() | theirs.keys()
        if name not in ours or name not in theirs or not torch.equal(ours[name], theirs[name])
    )


def _complete(generated: Generated) -> list[Completion]:
    assert None not in generated.completions
    return [each for each in generated.completions if each is not None]


def _tokens(generated: Generated) -> list[list[int]]:
    return [each.tokens.tolist() for each in _complete(generated)]


def _told(name: str, engine: Any, generated: Generated, *, temperature: float = 1.0) -> Result:
    """Tokens, and how far the trainer's log-probabilities are from vLLM's at most."""
    import torch

    documents = []
    for place, (request, each) in enumerate(zip(requests(), _complete(generated), strict=True)):
        tokens = np.concatenate([request.prompt, each.tokens])
        is_sampled = np.arange(len(tokens)) >= len(request.prompt)
        documents.append(Document(tokens, is_sampled, place))
    batch = TokenBatch.from_documents(documents)
    logits = engine.logits(batch)
    found: Result = {name: _tokens(generated)}
    if logits is not None:
        targets = torch.from_numpy(batch.targets)
        logprobs = (logits.float() / temperature).log_softmax(-1)[targets != IGNORE]
        ours = logprobs.gather(1, targets[targets != IGNORE][:, None])[:, 0]
        theirs = np.concatenate([each.logprobs for each in _complete(generated)])
        found[f"{name}_difference"] = (ours - torch.from_numpy(theirs)).abs().max().item()
        found[f"{name}_mean"] = ours.mean().item()
    return found


def _message(act: Any) -> str | None:
    from alignctl.errors import RunError

    try:
        act()
    except RunError as error:
        return error.message
    return None


def _stopping(rollout: Any, before: Generated) -> Result:
    """What had been the sixth token of the first completion is a stop token now."""
    (first, *_) = _tokens(before)
    sampling = Sampling(max_new_tokens=8, stop_token_ids=(STOP, first[min(5, len(first) - 1)]))
    completions = _complete(rollout.generate(requests(), sampling))
    return {
        "stop_tokens": sampling.stop_token_ids,
        "finishes": [[each.finish, each.tokens.tolist()] for each in completions],
    }


def _poisoned(rollout: Any) -> Result:
    """Requests that cannot be served: one breaks whatever it is run with, three are refused."""
    poison = VOCAB_SIZE - 3

    def break_down(module: Any, inputs: Any) -> None:
        tokens = inputs[0]  # a model may well say this token: only behind BOS it is a prompt
        if ((tokens[1:] == poison) & (tokens[:-1] == 1)).any():
            raise RuntimeError("a poisoned prompt")

    model = _model(rollout)
    embedding = next(m for name, m in model.named_modules() if "embed" in name.rpartition(".")[2])
    hook = embedding.register_forward_pre_hook(break_down)
    good = requests()[:5]
    bad = [[1, poison], [1, 10**6], [5] * (SEQ_LENGTH + 1), []]
    broken = [
        Request(np.array(prompt, np.int32), seed=1, group=50 + number)
        for number, prompt in enumerate(bad)
    ]
    alone = rollout.generate(good, SAMPLING)
    found = rollout.generate([*good[:3], *broken, *good[3:]], SAMPLING)
    after = rollout.generate(good, SAMPLING)
    hook.remove()
    return {
        "poisoned": [each and each.tokens.tolist() for each in found.completions],
        "poisoned_counts": [found.num_retried, found.num_failed],
        "unpoisoned": [_tokens(alone), _tokens(after)],
    }


def _model(rollout: Any) -> Any:
    """vLLM's model in this process."""
    return rollout._llm.llm_engine.model_executor.driver_worker.worker.model_runner.get_model()


def _pushes(rollout: Any, engine: Any) -> Result:
    """Pushes that lack a tensor, or that vLLM spoils on the way."""
    from itertools import islice

    from alignctl.engines.megatron.weights import hf_weights

    whole = [(name, tensor.clone()) for name, tensor in hf_weights(engine)]
    model = _model(rollout)
    load = model.load_weights

    def spoil(stream: Any) -> Any:
        changed = [(n, t + 1e-3 if n.endswith(_SPOILT) else t) for n, t in stream]
        return load(changed)

    found: Result = {"lacking": _message(lambda: rollout.load_weights(islice(whole, 3)))}
    found["after_lacking"] = _message(lambda: rollout.generate(requests(), SAMPLING))
    rollout.load_weights(whole)
    model.load_weights = spoil
    found["spoilt"] = _message(lambda: rollout.load_weights(whole))
    del model.load_weights
    rollout.load_weights(whole)
    found["version_at_end"] = rollout.version
    return found


_SPOILT = ("layers.1.mlp.down_proj.weight", "h.1.mlp.dense_4h_to_h.weight")

if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
