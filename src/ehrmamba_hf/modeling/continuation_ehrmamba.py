"""How models make histories, extend them, and predict from them: see EHRMambaHistory."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from .attributes_ehrmamba import ATTRIBUTES, CLS, REGISTER, SPECIAL_TYPES, TASK
from .history_ehrmamba import (
    CLS_ID,
    IN_VISIT,
    STATES,
    Columns,
    EHRMambaHistory,
    expect_fingerprint,
    fingerprint_of,
)


class EHRMambaHistoryMixin:
    """`encode_history` and `extend_history`, for the backbone and every model on it."""

    @torch.no_grad()
    def encode_history(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        ages: Tensor | None = None,
        time_stamps: Tensor | None = None,
        visit_segments: Tensor | None = None,
        visit_orders: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        tasks: Sequence[int] | None = None,
    ) -> EHRMambaHistory:
        """Encode patients, to be kept.

        Args:
            input_ids: whole sequences without a prompt, (patients, length): [CLS] comes first.
            token_type_ids: as in the model's forward; attributes that are not given are derived.
            ages: likewise.
            time_stamps: likewise.
            visit_segments: likewise.
            visit_orders: likewise.
            attention_mask: 1 on real tokens, on either side of padding; by default, ids other than
                PAD.
            tasks: ids of tasks' tokens (`tokenizer.task_token_id(name)`), each of which takes the
                place of [CLS] in a state of its own; by default [CLS] alone.

        Raises:
            ValueError: a model in training mode, a row that does not begin with [CLS], or a task
                that is none.
        """
        backbone = evaluated_backbone(self)
        input_ids = input_ids.to(backbone.device)
        real = _real(backbone, input_ids, attention_mask)
        first = real.long().argmax(1, keepdim=True)
        if bool((input_ids.gather(1, first) != CLS_ID).any()):
            raise ValueError("expected rows that begin with [CLS], without a task's prompt")
        history = _blank(backbone, len(input_ids), [CLS_ID] if tasks is None else tasks)
        columns = (token_type_ids, ages, time_stamps, visit_segments, visit_orders)
        # A blank history ends with [CLS].
        return self.extend_history(history, input_ids, *columns, real.scatter(1, first, False))

    @torch.no_grad()
    def extend_history(
        self,
        history: EHRMambaHistory,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        ages: Tensor | None = None,
        time_stamps: Tensor | None = None,
        visit_segments: Tensor | None = None,
        visit_orders: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> EHRMambaHistory:
        """Go on from a history with the tokens that follow it.

        Args:
            history: of the same patients, in the same order; it is not changed.
            input_ids: the new tokens, (patients, new length): of a patient's whole sequence, those
                from `history.lengths` on. A row may be all padding: nothing new.
            token_type_ids: as in the model's forward; attributes that are not given go on from the
                history's.
            ages: likewise.
            time_stamps: likewise.
            visit_segments: likewise.
            visit_orders: likewise.
            attention_mask: see `encode_history`.

        Raises:
            ValueError: a model in training mode, a history of another backbone or of another number
                of patients, or tokens that begin a sequence.
        """
        backbone = evaluated_backbone(self, history)
        history, input_ids = history.to(backbone.device), input_ids.to(backbone.device).long()
        if len(input_ids) != len(history):
            raise ValueError(
                f"expected new tokens of the history's {len(history)} patients, in its order, "
                f"found {len(input_ids)} rows"
            )
        real = _real(backbone, input_ids, attention_mask)
        types = backbone.embeddings.token_type_table[input_ids]
        if bool((real & ((types == CLS) | (types == TASK))).any()):
            raise ValueError("expected the tokens after the history's, found [CLS] or a task's")
        tail = history.tail()
        columns = {name: tail[name] for name in ATTRIBUTES}
        given = (token_type_ids, ages, time_stamps, visit_segments, visit_orders)
        for name, column in zip(ATTRIBUTES, given, strict=True):
            if column is not None:
                columns[name] = torch.cat([tail[name], column.to(tail[name])], dim=1)
        ids = torch.cat([tail["input_ids"], input_ids], dim=1)
        # Of the tail, the stand-in is not fed, and the history's last token is.
        real = torch.cat([real.new_tensor([[False, True]]).expand(len(ids), 2), real], dim=1)
        columns = backbone.embeddings.derive(ids, real.long(), **columns)
        return _feed(backbone, history, columns | {"input_ids": ids}, real)


class EHRMambaHistoryPredictionMixin:
    """`predict_from_history`, for the sequence classifier."""

    @torch.no_grad()
    def predict_from_history(self, history: EHRMambaHistory) -> Tensor:
        """Predict all tasks of a history, which is not changed.

        Args:
            history: of tasks' tokens.

        Returns:
            Logits, (patients, tasks) for one label, else (patients, tasks, labels). The sigmoid of
            a single label's logit is its probability.

        Raises:
            ValueError: a model in training mode, a history of another backbone, or one begun with
                [CLS]: under multitask prompted finetuning, the first token is the task's.
        """
        backbone = evaluated_backbone(self, history)
        history = history.to(backbone.device)
        if bool((history.tasks == CLS_ID).any()):
            raise ValueError("expected a history of tasks' tokens, found one begun with [CLS]")
        last = {name: column[:, 1:] for name, column in history.tail().items()}
        columns = {name: torch.cat([c, torch.zeros_like(c)], dim=1) for name, c in last.items()}
        # As at the front, [CLS] stands where the task's token will be.
        columns["input_ids"][:, 1] = CLS_ID
        columns["token_type_ids"][:, 1] = CLS
        open_visit = (last["token_type_ids"] != REGISTER).long()
        columns["attention_mask"] = torch.cat([open_visit, torch.ones_like(open_visit)], dim=1)
        rows, cache = history.rows(columns), history.cache(backbone.config)
        hidden = backbone(**rows, cache_params=cache, use_cache=True).last_hidden_state[:, -1]
        logits = cast(Any, self).classifier(hidden).unflatten(0, (len(history), -1))
        return logits.squeeze(-1) if logits.shape[-1] == 1 else logits


def evaluated_backbone(model: Any, history: EHRMambaHistory | None = None) -> Any:
    """The backbone of a model that is ready to encode, and to go on from a history.

    Raises:
        ValueError: a model in training mode, or a history of another backbone.
    """
    if model.training:
        raise ValueError("expected a model without dropout, found one in training: call eval()")
    if history is not None:
        expect_fingerprint(history, fingerprint_of(model.base_model))
    return model.base_model


def _real(backbone: Any, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Which tokens are real, (patients, length)."""
    if attention_mask is None:
        return input_ids != backbone.config.pad_token_id
    return attention_mask.to(input_ids.device) != 0


def _blank(backbone: Any, patients: int, tasks: Sequence[int]) -> EHRMambaHistory:
    """The history of patients with nothing but the first token, of which nothing is fed yet."""
    known = [i for i, kind in enumerate(SPECIAL_TYPES) if kind in (CLS, TASK)]
    if not tasks or any(task not in known for task in tasks):
        raise ValueError(f"tasks: expected ids of tasks' tokens, of {known}, found {list(tasks)}")
    config, device = backbone.config, backbone.device
    shape = (config.num_hidden_layers, patients, len(tasks), config.intermediate_size)
    wide = torch.promote_types(backbone.dtype, torch.float32)
    ids = torch.full((patients,), CLS_ID, device=device)
    return EHRMambaHistory(
        conv_states=torch.zeros(*shape, config.conv_kernel, dtype=backbone.dtype, device=device),
        recurrent_states=torch.zeros(*shape, config.state_size, dtype=wide, device=device),
        tasks=torch.tensor(list(tasks), device=device),
        lengths=torch.ones_like(ids),
        input_ids=ids,
        token_type_ids=torch.full_like(ids, CLS),
        ages=torch.zeros(patients, device=device),
        time_stamps=torch.zeros(patients, device=device),
        visit_segments=torch.zeros_like(ids),
        visit_orders=torch.zeros_like(ids),
        fingerprint=fingerprint_of(backbone),
    )


def _feed(
    backbone: Any, history: EHRMambaHistory, columns: Columns, real: Tensor
) -> EHRMambaHistory:
    """Feed all real tokens, (patients, length), but the last one of each row."""
    count = real.sum(1, keepdim=True)
    # Real tokens first, in their order: whatever the padding was, it is now on the right.
    order = (~real).byte().argsort(dim=1, stable=True)[:, : int(count.max())]
    columns = {name: column.gather(1, order) for name, column in columns.items()}
    place = torch.arange(order.shape[1], device=order.device)
    new = {name: columns[name].gather(1, count - 1) for name in ("input_ids", "token_type_ids")}
    inside = (columns["visit_orders"] > 0) & (place < count)
    latest = (inside * (place + 1)).argmax(1, keepdim=True)
    for name in IN_VISIT:
        old = getattr(history, name).unsqueeze(1)
        value = columns[name].gather(1, latest).to(old.dtype)
        new[name] = torch.where(inside.any(1, keepdim=True), value, old)
    updated: dict[str, Any] = {name: column.squeeze(1) for name, column in new.items()}
    updated["lengths"] = history.lengths + count.squeeze(1) - 1
    if order.shape[1] > 1:
        fed = {name: column[:, :-1] for name, column in columns.items()}
        fed["attention_mask"] = (place < count - 1)[:, :-1].long()
        cache = history.cache(backbone.config)
        backbone(**history.rows(fed), cache_params=cache, use_cache=True)
        updated |= _states(cache, len(history))
    return replace(history, **updated)


def _states(cache: DynamicCache, patients: int) -> Columns:
    """The states in a cache, (layers, patients, tasks, ...)."""
    layers = range(len(cache.layers))
    conv = [cache.get_conv_state(layer) for layer in layers]
    recurrent = [cache.get_recurrent_state(layer) for layer in layers]
    return {
        name: torch.stack(cast(list[Tensor], states)).unflatten(1, (patients, -1))
        for name, states in zip(STATES, (conv, recurrent), strict=True)
    }


__all__ = ["EHRMambaHistoryMixin", "EHRMambaHistoryPredictionMixin", "evaluated_backbone"]
