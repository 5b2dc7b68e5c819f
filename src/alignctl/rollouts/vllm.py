"""vLLM in the processes of the trainer: each rank samples with its part of the current weights.

The job's ranks are replicas of `tp` consecutive ranks. vLLM's engine runs in every rank, and the
ranks of a replica make the same decisions, because they are given the same requests and the same
seeds. Nothing is written to disk, and no server runs.

vLLM is imported inside functions: it takes seconds, reads the environment that `library` sets, and
is not there where a stage is only simulated.
"""

import contextlib
import gc
import json
import logging
import math
import random
import tempfile
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from alignctl.checkpoints.tensors.dtypes import BY_FLAG
from alignctl.config import rollout as config
from alignctl.config.precision import Precision
from alignctl.engines.device import DEVICE, IS_GPU
from alignctl.errors import RunError
from alignctl.models.families import model_from_hf, weight_map
from alignctl.models.weight_map import hf_shapes
from alignctl.rollouts import library, vllm_weights
from alignctl.rollouts.samples import (
    Completion,
    Generated,
    Request,
    Sampling,
    deal_groups,
    pack,
    unpack,
)

logger = logging.getLogger(__name__)

_CPU_TOKENS = 4096
"""Most tokens of a forward pass without a GPU, unless a sequence can be longer."""


class Rollout:
    """vLLM on all ranks of the job. Every method is collective.

    Attributes:
        version: Pushes of weights so far; before the first, nothing can be sampled.
        num_replicas: Copies of the model.
    """

    def __init__(
        self,
        hf_config: Mapping[str, Any],
        settings: config.Rollout,
        *,
        max_model_len: int,
        precision: Precision,
        seed: int,
        timeout_minutes: float,
    ) -> None:
        """Start vLLM; `alignctl.engines.megatron.groups.initialize` must have been called.

        Args:
            hf_config: The policy's transformers config.
            settings: Layout and memory.
            max_model_len: Longest prompt and completion together, in tokens.
            precision: Of weights and computation.
            seed: vLLM's own, the same on all ranks; each request has one as well.
            timeout_minutes: How long a rank waits for the others in one collective.
        """
        self.version = 0
        self.num_replicas = dist.get_world_size() // settings.tp
        self._replica, self._rank_in_replica = divmod(dist.get_rank(), settings.tp)
        self._settings = settings
        self._dtype = BY_FLAG[precision]
        self._has_weights = False
        model = model_from_hf(hf_config, where="the policy's config.json")
        self._vocab_size = model.vocab_size
        self._shapes = hf_shapes(weight_map(model), model)
        told = {**hf_config, "dtype": self._dtype.name}
        if not model.traits.is_rotary:  # ALiBi has no limit, but vLLM takes this for one
            told["seq_length"] = max(model.max_position_embeddings, max_model_len)
        library.set_environment()
        with _apart(), tempfile.TemporaryDirectory(prefix="alignctl-rollout-") as folder:
            (Path(folder) / "config.json").write_text(json.dumps(told), encoding="utf-8")
            if model.traits.activation == "gelu_tanh":
                from alignctl.rollouts import vllm_bloom

                vllm_bloom.register()
            self._llm: Any = _start(
                folder,
                settings,
                dtype=self._dtype.name,
                max_model_len=max_model_len,
                seed=seed,
                distributed_timeout_seconds=math.ceil(60 * timeout_minutes),
            )

    def load_weights(self, stream: Iterable[tuple[str, Tensor]]) -> None:
        """Replace all weights, and forget what was computed with the old ones.

        Args:
            stream: Hugging Face names and whole tensors, the same on all ranks, such as those of
                `alignctl.engines.megatron.weights.hf_weights`. A tied output layer is not in it.

        Raises:
            RunError: Weights are missing or, with `verify_push`, are not what was sent.
        """
        self._has_weights = False
        cast = ((name, tensor.to(self._dtype.torch)) for name, tensor in stream)
        with _apart():
            (sums,) = self._llm.collective_rpc(vllm_weights.load, args=(cast, self._shapes))
            if self._settings.verify_push:
                self._llm.collective_rpc(vllm_weights.check, args=(sums,))
            self._llm.reset_prefix_cache()
        self.version += 1
        self._has_weights = True

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Generated:
        """Sample a completion for each request; every rank passes all of them, and gets all.

        A request that fails (vLLM raises or gives up, nothing is sampled, a log-probability is not
        finite) is tried once more, alone, so that it cannot take others with it; then it is
        counted.

        Args:
            requests: Of the whole job.
            sampling: How tokens are drawn.

        Raises:
            RunError: No weights were loaded, or the ranks of a replica sampled different tokens.
        """
        self._check_weights()
        mine = deal_groups(requests, sampling, self.num_replicas)[self._replica]
        alike = [(request, sampling) for request in requests]
        found = dict(self._steps(alike, mine))
        failed = [place for place in mine if place not in found]
        for place in failed:
            found |= self._steps(alike, [place])
        everybodys = self._exchange(found)
        first_failures = torch.tensor(len(failed) if self._rank_in_replica == 0 else 0)
        first_failures = first_failures.to(DEVICE)
        dist.all_reduce(first_failures)
        completions = [everybodys.get(place) for place in range(len(requests))]
        return Generated(
            completions, int(first_failures), completions.count(None), version=self.version
        )

    def stream(
        self, requests: Sequence[tuple[Request, Sampling]]
    ) -> Iterator[tuple[int, Completion | None]]:
        """Sample on one replica, and give each completion as soon as it is there.

        A request that fails is tried once more, alone, when all others are done.

        Args:
            requests: All of them, each with the way it is sampled.

        Yields:
            The place of a request, in no order, and what was sampled; None where it failed twice.

        Raises:
            RunError: No weights were loaded.
        """
        assert self.num_replicas == 1, "completions are not exchanged"
        self._check_weights()
        failed = set(range(len(requests)))
        for place, completion in self._steps(requests, range(len(requests))):
            failed.discard(place)
            yield place, completion
        for place in sorted(failed):
            yield place, dict(self._steps(requests, [place])).get(place)

    def sleep(self) -> None:
        """Give the memory of weights and cache back; weights have to be pushed before sampling.

        Without a GPU, where vLLM cannot sleep, or with `sleep` off, it only forgets the prefixes.
        """
        self._llm.reset_prefix_cache()
        if self._can_sleep:
            self._llm.sleep(level=2)
            self._has_weights = False

    def wake(self) -> None:
        """Take the memory again that `sleep` gave back."""
        if self._can_sleep:
            self._llm.wake_up()

    def close(self) -> None:
        """Free vLLM's memory and groups; those of the trainer stay."""
        from vllm.distributed.parallel_state import destroy_model_parallel

        core = self._llm.llm_engine.engine_core.engine_core
        core.model_executor.shutdown()
        core.scheduler.shutdown()
        del core, self._llm
        gc.unfreeze()  # vLLM had taken its objects from the garbage collector
        gc.collect()
        destroy_model_parallel()

    @property
    def has_weights(self) -> bool:
        """True if it can sample: weights were pushed, and not lost in sleep since."""
        return self._has_weights

    @property
    def _can_sleep(self) -> bool:
        return IS_GPU and self._settings.sleep

    def _check_weights(self) -> None:
        if not self._has_weights:
            raise RunError("vLLM has no weights yet: they have to be pushed before it samples")

    def _steps(
        self, requests: Sequence[tuple[Request, Sampling]], places: Sequence[int]
    ) -> Iterator[tuple[int, Completion]]:
        """Yield vLLM's completions of some of the requests, without those that failed."""
        from vllm.exceptions import VLLMClientError

        engine = self._llm.llm_engine
        waiting: set[str] = set()
        for place in places:
            request, sampling = requests[place]
            tokens = request.prompt
            if ((tokens < 0) | (tokens >= self._vocab_size)).any():
                # With tensor parallelism vLLM would take the embedding of such a token for zero.
                logger.warning("request %d: a token is not of the vocabulary", place)
                continue
            try:
                prompt = {"prompt_token_ids": tokens.tolist()}
                engine.add_request(str(place), prompt, _params(sampling, request.seed))
                waiting.add(str(place))
            except VLLMClientError as error:  # it cannot take such a request
                logger.warning("request %d: %s", place, error)
        try:
            while engine.has_unfinished_requests():
                with _apart():
                    outputs = engine.step()
                for output in outputs:
                    waiting.discard(output.request_id)
                    completion = _completion(output.outputs[0])
                    if completion is not None:
                        yield int(output.request_id), completion
        except Exception:
            # Any of the requests under way may be the culprit, and vLLM does not say which one:
            # all count as failed, and each is tried again alone.
            logger.exception("vLLM failed with %d requests under way", len(waiting))
            engine.abort_request(sorted(waiting))

    def _exchange(self, found: dict[int, Completion]) -> dict[int, Completion]:
        """Exchange the completions of all replicas; every rank gets them."""
        packed = pack(found)
        mine = torch.tensor(
            [self._replica, len(packed), zlib.crc32(packed.tobytes())], device=DEVICE
        )
        told = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(told, mine)
        rows = [row.tolist() for row in told]
        for first, *others in zip(*[iter(rows)] * self._settings.tp, strict=True):
            if any(other != first for other in others):
                raise RunError(
                    f"the {self._settings.tp} ranks of replica {first[0]} of the rollout sampled "
                    "different tokens",
                    "their logits differ: that must not happen with the same weights and seeds",
                )
        sizes = [row[1] for row in rows[:: self._settings.tp]]
        return {
            place: completion
            for replica, part in enumerate(self._gather(packed, max(sizes)))
            for place, completion in unpack(part[: sizes[replica]]).items()
        }

    def _gather(self, packed: NDArray[np.int32], size: int) -> list[NDArray[np.int32]]:
        """Gather the arrays of the replicas' first ranks, each filled up to the same size."""
        padded = torch.zeros(size, dtype=torch.int32)
        padded[: len(packed)] = torch.from_numpy(packed)
        padded = padded.to(DEVICE)
        parts = [torch.empty_like(padded) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, padded)
        return [part.cpu().numpy() for part in parts[:: self._settings.tp]]


def _start(folder: str, settings: config.Rollout, **more: Any) -> Any:
    """Start a `vllm.LLM` with random weights, as one rank of a replica."""
    from vllm import LLM

    if IS_GPU:
        memory: dict[str, Any] = {"gpu_memory_utilization": settings.gpu_memory_utilization}
    else:
        memory = {
            "kv_cache_memory_bytes": int(settings.kv_cache_gib * 2**30),
            # A prompt that is read in two steps sets the offset of its request's generator back,
            # which generators of a CPU do not have: vLLM fails. So each is read in one step.
            "enable_chunked_prefill": False,
        }
        if settings.tp > 1:
            _name_shared_memory()
    tokens = settings.max_num_batched_tokens
    if tokens is not None or not IS_GPU:
        memory["max_num_batched_tokens"] = max(tokens or _CPU_TOKENS, more["max_model_len"])
    llm = LLM(
        folder,
        distributed_executor_backend="external_launcher",
        tensor_parallel_size=settings.tp,
        load_format="dummy",
        skip_tokenizer_init=True,
        generation_config="vllm",  # nothing that a file beside the model suggests
        logprobs_mode="processed_logprobs",
        enable_prefix_caching=True,
        enforce_eager=settings.enforce_eager or not IS_GPU,
        enable_sleep_mode=IS_GPU and settings.sleep,
        max_num_seqs=settings.max_num_seqs,
        **memory,
        **more,
    )
    # It would end all process groups, the trainer's too, when vLLM is collected as garbage.
    llm.llm_engine.engine_core._finalizer.detach()
    return llm


def _name_shared_memory() -> None:
    """Give this job's shared memory a name of its own.

    Without a GPU, vLLM's ranks exchange tensors through files of shared memory, which are called
    the same in every job of an external launcher: a second job on the machine, or one after a kill,
    would find them there and fail.
    """
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed

    box = [uuid.uuid4().hex]
    dist.broadcast_object_list(box, src=0)
    (job,) = box

    def name(group: Any) -> str:
        return f"{job}-{group.unique_name}-{'-'.join(map(str, group.ranks))}"

    _CPUSHMDistributed.make_group_name = staticmethod(name)


def _params(sampling: Sampling, seed: int) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k or 0,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        stop_token_ids=list(sampling.stop_token_ids),
        ignore_eos=True,  # the end of text is one of the stop tokens
        seed=seed,
        logprobs=0,  # of the token that was drawn, and of no other
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _completion(output: Any) -> Completion | None:
    """Make a completion of one of vLLM's outputs; None where nothing can be learned from it."""
    tokens = np.array(output.token_ids, np.int32)
    logprobs = np.array(output.logprobs.logprobs if output.logprobs else [], np.float32)
    is_good = (
        output.finish_reason in ("stop", "length")
        and 0 < len(tokens) == len(logprobs)
        and bool(np.isfinite(logprobs).all())
    )
    return Completion(tokens, logprobs, output.finish_reason) if is_good else None


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """Keep vLLM from the trainer's random states, and on a CPU from compiling single operators.

    vLLM seeds and draws from the states of the whole process, and a resumed run would go another
    way. Compiling the few operators that it always compiles takes longer than a tiny model's run.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpu = torch.cuda.get_rng_state() if IS_GPU else None
    eager = contextlib.nullcontext() if IS_GPU else torch.compiler.set_stance("force_eager")
    try:
        with eager:
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_gpu is not None:
            torch.cuda.set_rng_state(on_gpu)
