"""Tiny models with random weights and a tokenizer, as Hugging Face folders."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from alignctl.config.sections import Model
from alignctl.data.rows.schemas import ASSISTANT, HUMAN
from alignctl.models.families import FAMILIES

# transformers may look for DeepSpeed, which would tell at length that there is no GPU.
os.environ.setdefault("DS_ACCELERATOR", "cpu")
logging.disable_progress_bar()  # of reading and writing half a million weights

SPECIAL_TOKENS = {
    "unk_token": "<unk>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
}
"""Their ids are 0, 1, 2, 3; those of BOS and EOS are what both families expect."""

WEIGHT_SCALE = 0.08
"""Standard deviation of the random weights. The usual 0.02 is for wide models: at a width of 128
attention starts out blind, and Bloom needs three times the steps."""


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Any:
    """Train a byte-level BPE tokenizer that takes digits one by one, as Llama's, and adds BOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos = SPECIAL_TOKENS["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL_TOKENS)


def write_model(folder: Path, model: Model, tokenizer: Any, *, seed: int) -> int:
    """Write a model with random weights, and its tokenizer.

    Args:
        folder: The Hugging Face folder to make.
        model: The architecture, as a preset has it.
        tokenizer: What `train_tokenizer` made.
        seed: Of the weights.

    Returns:
        The number of parameters.
    """
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        **FAMILIES[model.family].to_hf(model),
        initializer_range=WEIGHT_SCALE,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    network = AutoModelForCausalLM.from_config(config)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() for parameter in network.parameters())


def replies(folder: Path, questions: Sequence[str], *, max_new_tokens: int) -> list[str]:
    """Answer questions with transformers, by the most likely token each time.

    Args:
        folder: A Hugging Face folder. Its chat template writes the prompts; without one they are
            in the form that query/response rows are trained in.
        questions: What is asked.
        max_new_tokens: Where a model that does not stop is stopped.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, padding_side="left")
    network = AutoModelForCausalLM.from_pretrained(folder).eval()
    inputs = tokenizer(
        [_prompt(tokenizer, question) for question in questions],
        add_special_tokens=False,
        padding=True,
        return_tensors="pt",
        return_token_type_ids=False,
    )
    with torch.no_grad():
        tokens = network.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    new = tokens[:, inputs["input_ids"].shape[1] :]
    texts: list[str] = tokenizer.batch_decode(new, skip_special_tokens=True)
    return texts


def _prompt(tokenizer: Any, question: str) -> str:
    if tokenizer.chat_template is None:
        return f"{tokenizer.bos_token}{HUMAN}{question}{ASSISTANT}"
    message = {"role": "user", "content": question}
    text: str = tokenizer.apply_chat_template([message], tokenize=False)
    return text
