"""Several patients in one row, told apart by `seq_idx`: where each begins and ends."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def numbered_patients(seq_idx: Tensor | None, position_ids: Tensor | None) -> Tensor | None:
    """`seq_idx`, or, where only `position_ids` tell the patients apart, numbers from those.

    Collators of transformers that pack give the one or the other; a patient begins at each 0.

    >>> numbered_patients(None, torch.tensor([[0, 1, 2, 0, 1]])).tolist()
    [[1, 1, 1, 2, 2]]
    """
    if seq_idx is None and position_ids is not None:
        return (position_ids == 0).cumsum(1)
    return seq_idx


def begins_patient(seq_idx: Tensor) -> Tensor:
    """True where another patient begins than the one before in the row, (batch, length).

    >>> begins_patient(torch.tensor([[7, 7, 2, 2, 5]])).int().tolist()
    [[0, 0, 1, 0, 1]]
    """
    return F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0))


def places_in_row(seq_idx: Tensor, mask: Tensor | None, kernel: int) -> Tensor:
    """Each position's place in its own patient's sequence, (batch, length).

    A row's first patient starts at the place `kernel`, since it may continue cached states, of
    which the convolution sees so many columns. Padding at the end belongs to the last patient.

    >>> places_in_row(torch.tensor([[7, 7, 2, 2, 5]]), None, kernel=4).tolist()
    [[4, 5, 0, 1, 0]]
    """
    begins = begins_patient(seq_idx)
    if mask is not None:
        begins = begins & (mask.flip(1).cumsum(1).flip(1) > 0)
    index = torch.arange(seq_idx.shape[1], device=seq_idx.device).expand(seq_idx.shape)
    return index - torch.where(begins, index, -kernel).cummax(1).values


def last_of_each_patient(
    hidden_states: Tensor, attention_mask: Tensor | None, seq_idx: Tensor | None
) -> Tensor:
    """The last real position of each patient: (batch, length, hidden) to (patients, hidden)."""
    length = hidden_states.shape[1]
    if attention_mask is not None:
        attention_mask = attention_mask[:, -length:].to(hidden_states.device)
    if seq_idx is not None:
        real = torch.ones_like(seq_idx) if attention_mask is None else attention_mask
        goes_on = F.pad((real[:, 1:] != 0) & ~begins_patient(seq_idx)[:, 1:], (0, 1))
        return hidden_states[(real != 0) & ~goes_on]
    if attention_mask is None:
        return hidden_states[:, -1]
    last = length - 1 - attention_mask.long().flip(-1).argmax(-1)
    return hidden_states[torch.arange(hidden_states.shape[0], device=last.device), last]


__all__ = ["begins_patient", "last_of_each_patient", "numbered_patients", "places_in_row"]
