"""A patient's history as a state of fixed size, to be kept, extended, and asked for predictions.

A hospital encodes a record once, keeps the state, and feeds only what is new. The first token is
part of what a state remembers: [CLS] for forecasting, under multitask prompted finetuning (EHRMamba
paper, section 3.3) the task's token. So there is one state for each patient and task.

A state holds all tokens but the last, which is kept beside it. A prediction replaces a closing
[REG] by the task's token, and appends the task's token to whatever else comes last, just as the
tokenizer's prompts do. So predictions from a history are those of a full forward pass over the
prompted sequence, and a history extended in any number of parts is the one encoded at once.

Where this does not hold:

- Truncation. A state remembers the whole sequence: encode columns that no tokenizer has truncated.
  It equals the full forward pass over the same, whole sequence.
- Late arrivals. An event that belongs before the last token of a state, or a visit that is closed,
  merged or moved after the fact, cannot be put in: encode the patient anew.
- Other weights. A state belongs to the backbone that made it; another one is refused.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.cache_utils import DynamicCache

from .attributes_ehrmamba import CLS, INTERVAL, OTHER, PAD, SPECIAL_TYPES, TASK, VISIT_START

FORMAT = "ehrmamba-history/1"
Columns = dict[str, Tensor]

CLS_ID = SPECIAL_TYPES.index(CLS)
STATES = ("conv_states", "recurrent_states")
IN_VISIT = ("ages", "time_stamps", "visit_segments", "visit_orders")
# The fields of the configuration that change a state and do not show in the weights.
DEFINING = (
    "conv_kernel",
    "hidden_act",
    "layer_norm_epsilon",
    "residual_in_fp32",
    "embedding_layer_norm_eps",
    "embedding_activation",
    "learned_zero_rows",
    "max_visit_orders",
    "pad_token_id",
)


@dataclass(frozen=True, eq=False)
class EHRMambaHistory:
    """The states of a batch of patients. Its size does not depend on the length of their records.

    It holds no patient ids; the caller keeps the order of the patients. No method changes it.

    Args:
        conv_states: (layers, patients, tasks, channels, conv_kernel), before the last token.
        recurrent_states: (layers, patients, tasks, channels, states), float32, likewise.
        tasks: ids of the first tokens, (tasks,): [CLS], or tokens of tasks.
        lengths: tokens so far, with the first and the last one, (patients,).
        input_ids: each patient's last token, (patients,).
        token_type_ids: its type, (patients,).
        ages: years at the last token inside a visit, (patients,); 0 before any visit, as below.
        time_stamps: weeks since the first event, there, (patients,).
        visit_segments: its segment, (patients,).
        visit_orders: its order, (patients,).
        fingerprint: of the backbone that made the states.
    """

    conv_states: Tensor
    recurrent_states: Tensor
    tasks: Tensor
    lengths: Tensor
    input_ids: Tensor
    token_type_ids: Tensor
    ages: Tensor
    time_stamps: Tensor
    visit_segments: Tensor
    visit_orders: Tensor
    fingerprint: str

    def __len__(self) -> int:
        """The number of patients."""
        return self.lengths.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all patients' and tasks' states together."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    def to(self, device: torch.device | str) -> "EHRMambaHistory":
        """The same history on a device."""
        return replace(self, **{n: t.to(device) for n, t in self._tensors().items()})

    def select(self, patients: Any = None, tasks: Sequence[int] | None = None) -> "EHRMambaHistory":
        """Some patients (positions, a slice or a mask), some tasks (ids of their tokens), or both.

        Raises:
            ValueError: a task that has no state here.
        """
        kept = self._tensors()
        if patients is not None:
            index = torch.arange(len(self), device=self.lengths.device)[patients].reshape(-1)
            for name in kept.keys() - {"tasks"}:
                kept[name] = kept[name].index_select(1 if name in STATES else 0, index)
        if tasks is not None:
            known = self.tasks.tolist()
            missing = [task for task in tasks if task not in known]
            if missing:
                raise ValueError(f"tasks: expected some of {known}, found {missing}")
            places = torch.tensor([known.index(task) for task in tasks], device=self.tasks.device)
            for name in STATES:
                kept[name] = kept[name].index_select(2, places)
            kept["tasks"] = self.tasks[places]
        return replace(self, **kept)

    @staticmethod
    def concatenate(histories: Sequence["EHRMambaHistory"]) -> "EHRMambaHistory":
        """The patients of several histories in one, which have the same tasks and one backbone.

        Raises:
            ValueError: no history, other tasks, or another backbone.
        """
        if not histories:
            raise ValueError("concatenate: expected at least one history, found none")
        first = histories[0]
        for other in histories[1:]:
            expect_fingerprint(other, first.fingerprint)
            if other.tasks.tolist() != first.tasks.tolist():
                raise ValueError(
                    f"concatenate: expected the tasks {first.tasks.tolist()} in every history, "
                    f"found {other.tasks.tolist()}"
                )
        joined: dict[str, Any] = {
            name: torch.cat([getattr(h, name) for h in histories], 1 if name in STATES else 0)
            for name in first._tensors().keys() - {"tasks"}
        }
        return replace(first, **joined)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; a file that is there is replaced only by a whole one."""
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        tensors = {name: tensor.contiguous() for name, tensor in self._tensors().items()}
        try:
            save_file(tensors, partial, {"format": FORMAT, "fingerprint": self.fingerprint})
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> "EHRMambaHistory":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a safetensors file of another kind.
        """
        with safe_open(path, "pt", device=device) as file:
            metadata = file.metadata() or {}
            found = metadata.get("format")
            if found != FORMAT:
                raise ValueError(f"{path}: expected a file of format {FORMAT}, found {found}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return cls(**tensors, fingerprint=metadata["fingerprint"])

    def cache(self, config: Any, copies: int = 1) -> DynamicCache:
        """The states as a new cache, to feed to a model; the history stays as it is.

        Args:
            config: the model's configuration.
            copies: neighbouring rows of the cache for each state.

        Returns:
            A cache of patients * tasks * copies rows, the tasks of one patient side by side.
        """
        cache = DynamicCache(config=config)
        for layer, states in enumerate(zip(self.conv_states, self.recurrent_states, strict=True)):
            conv, recurrent = (s.flatten(0, 1).repeat_interleave(copies, 0) for s in states)
            cache.update_conv_state(conv, layer, conv_kernel_size=conv.shape[-1])
            cache.update_recurrent_state(recurrent, layer)
        return cache

    def tail(self) -> Columns:
        """Two columns, (patients, 2), after which new ones go on.

        The first is never fed: it stands for the last token inside a visit, from which age, time
        and order of later tokens are counted. The second is the last token.
        """
        types = self.token_type_ids
        inside = (types >= VISIT_START) & (types != INTERVAL) & (types != TASK)
        stand_in = torch.where(self.visit_orders > 0, OTHER, PAD)
        columns = {
            "input_ids": torch.stack([torch.zeros_like(self.input_ids), self.input_ids], 1),
            "token_type_ids": torch.stack([stand_in, types], 1),
        }
        for name in IN_VISIT:
            value = getattr(self, name)
            columns[name] = torch.stack([value, value * inside], 1)
        return columns

    def rows(self, columns: Columns) -> Columns:
        """Columns, (patients, length), as rows of patients * tasks: [CLS] becomes the task's token.

        Both have the same attributes, 0.
        """
        rows = {name: c.repeat_interleave(len(self.tasks), 0) for name, c in columns.items()}
        prompts = self.tasks.repeat(len(self)).unsqueeze(1)
        first = rows["token_type_ids"] == CLS
        kinds = torch.where(prompts == CLS_ID, CLS, TASK)
        rows["input_ids"] = torch.where(first, prompts, rows["input_ids"])
        rows["token_type_ids"] = torch.where(first, kinds, rows["token_type_ids"])
        return rows

    def _tensors(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "fingerprint"}


def expect_fingerprint(history: EHRMambaHistory, expected: str) -> None:
    """Refuse a history of another backbone: its states mean nothing to these weights.

    Raises:
        ValueError: the fingerprints differ.
    """
    if history.fingerprint != expected:
        raise ValueError(
            f"expected a history made by the weights {expected[:12]}, found one of "
            f"{history.fingerprint[:12]}: encode the record anew"
        )


def fingerprint_of(backbone: Any) -> str:
    """SHA-256 of a backbone's weights, tables and defining configuration.

    Heads are not part of it: one folder's language model and classifier share their histories.
    It is kept until the configuration changes, or a tensor is replaced, or changed by an operation
    that autograd sees: hashing the paper's model takes half a second.
    """
    tensors = sorted(backbone.state_dict(keep_vars=True).items())
    defining = {name: getattr(backbone.config, name) for name in DEFINING}
    versions = [(t.data_ptr(), 0 if t.is_inference() else t._version) for _, t in tensors]
    known, fingerprint = getattr(backbone, "_fingerprint", (None, ""))
    if known != (defining, versions):
        digest = hashlib.sha256(json.dumps(defining, sort_keys=True).encode())
        for name, tensor in tensors:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
        fingerprint = digest.hexdigest()
        backbone._fingerprint = ((defining, versions), fingerprint)
    return fingerprint


__all__ = ["EHRMambaHistory", "expect_fingerprint", "fingerprint_of"]
