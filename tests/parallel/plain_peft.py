"""What PEFT makes of adapters with the same numbers: logits, gradients, a few steps."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from alignctl.config.sections import Model
from alignctl.models.adapters import adapter_map, adapter_shapes, new_adapter
from tests.parallel import documents, reference
from tests.parallel.adapters import (
    COUNT,
    DROPPED_STEPS,
    DROPPING,
    LORA,
    OPTIMIZER,
    SEED,
    STEPS,
    drawn,
)


def write(plain: Any, model: Model, folder: Path) -> None:
    """Writes peft_logits.npy, peft_gradients.npz (by our names) and peft.json."""
    config = LoraConfig(
        r=LORA.rank,
        lora_alpha=int(LORA.alpha),
        lora_dropout=DROPPING.dropout,  # until it is trained, a model of PEFT drops nothing
        target_modules=list(LORA.modules(model.family)),
    )
    peft = get_peft_model(plain, config).eval()
    theirs = {name.replace(".default", ""): p for name, p in peft.named_parameters()}
    names = {name: theirs[row.hf[0]] for name, row in adapter_map(model, LORA).items()}
    shapes = adapter_shapes(model, LORA)
    trained = [parameter for parameter in peft.parameters() if parameter.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in names.values()}

    def put(start: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in names.items():
                assert tuple(parameter.shape) == shapes[name]
                parameter.copy_(start[name])

    put({name: drawn(name, shape) for name, shape in shapes.items()})
    np.save(folder / "peft_logits.npy", reference.logits(peft).numpy())
    reference.cross_entropy(peft, documents.of_step(0, count=COUNT))[0].backward()
    gradients: Any = {name: p.grad.numpy() for name, p in names.items() if p.grad is not None}
    np.savez(folder / "peft_gradients.npz", **gradients)

    put({name: new_adapter(name, shape, seed=0) for name, shape in shapes.items()})
    optimizer = torch.optim.AdamW(trained, lr=OPTIMIZER.lr, weight_decay=OPTIMIZER.weight_decay)
    losses, norms = [], []
    for step in range(STEPS):
        loss, _ = reference.cross_entropy(peft, documents.of_step(step, count=COUNT))
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, OPTIMIZER.clip_grad or 0.0)))
        optimizer.step()
        losses.append(loss.item())
    last = {name: parameter.detach().clone() for name, parameter in names.items()}
    put({name: new_adapter(name, shape, seed=0) for name, shape in shapes.items()})
    dropped = _with_dropout(peft, trained)
    put(last)
    with torch.no_grad(), peft.disable_adapter():
        start = reference.cross_entropy(peft, documents.of_step(0, count=COUNT))[0].item()
    ours = reference.logits(peft)
    merged = (reference.logits(peft.merge_and_unload()) - ours).abs().max().item()
    content = {
        "loss": losses,
        "grad_norm": norms,
        "start": start,
        "merged": merged,
        "dropped": dropped,
        "num_trained": sum(parameter.numel() for parameter in trained),
    }
    (folder / "peft.json").write_text(json.dumps(content))


def _with_dropout(peft: Any, trained: Sequence[Tensor]) -> dict[str, list[float]]:
    """Steps in which elements fall away, document by document, as our micro batches of one are."""
    optimizer = torch.optim.AdamW(trained, lr=OPTIMIZER.lr, weight_decay=OPTIMIZER.weight_decay)
    losses, norms = [], []
    peft.train()
    torch.manual_seed(SEED)
    for step in range(DROPPED_STEPS):
        batch = documents.of_step(step, count=COUNT)
        weight = sum(int(each.supervised[1:].sum()) for each in batch)
        optimizer.zero_grad()
        total = 0.0
        for document in batch:
            loss, _ = reference.cross_entropy(peft, [document], reduction="sum")
            (loss / weight).backward()
            total += loss.item()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, OPTIMIZER.clip_grad or 0.0)))
        optimizer.step()
        losses.append(total / weight)
    peft.eval()
    return {"loss": losses, "grad_norm": norms}
