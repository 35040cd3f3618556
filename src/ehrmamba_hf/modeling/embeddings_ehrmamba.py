"""Embeddings of EHR tokens: concept, age and time fused, then type, visit order and segment."""

from typing import cast

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN

from .attributes_ehrmamba import (
    ATTRIBUTES,
    LAB,
    MEDICATION,
    OTHER,
    PROCEDURE,
    SPECIAL_TYPES,
    default_interval_hours,
    default_token_types,
    derive_attributes,
)
from .configuration_ehrmamba import EHRMambaConfig
from .linear_ehrmamba import EHRMambaLinear

HOURS_PER_DAY = 24.0


class EHRMambaSineFeatures(nn.Module):
    """Time2Vec features sin(w * t + phi) of a number, w and phi learned (paper, appendix C.2)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(size))
        self.phi = nn.Parameter(torch.empty(size))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Uniform, with the bound that Glorot's rule gives for one number in."""
        bound = (6 / (1 + self.w.shape[0])) ** 0.5
        init.uniform_(self.w, -bound, bound)
        init.uniform_(self.phi, -bound, bound)

    def forward(self, values: Tensor) -> Tensor:
        """(batch, length) to (batch, length, size); float32 inside, as weeks need the digits."""
        angles = values.float().unsqueeze(-1) * self.w.float() + self.phi.float()
        return torch.sin(angles).to(self.w.dtype)


class EHRMambaEmbeddings(nn.Module):
    """Sum of a token's embeddings, dropout and LayerNorm (paper, equation 1). No positions.

    Where the visit order is 0, age, time, segment and order are an exact zero vector. The gate is
    the order, since 0 is a newborn's age and a first event's time. Holds the two tables from which
    missing attributes are derived: the type of each token, and the hours that pass at it.
    """

    token_type_table: Tensor
    interval_hours_table: Tensor

    def __init__(self, config: EHRMambaConfig) -> None:
        super().__init__()
        self.config = config
        width, sines = config.hidden_size, config.time_embedding_size
        self.concept = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.time = EHRMambaSineFeatures(sines)
        self.age = EHRMambaSineFeatures(sines)
        self.fusion = EHRMambaLinear(width + 2 * sines, width)
        self.activation = ACT2FN[config.embedding_activation or "linear"]
        self.token_type = nn.Embedding(config.type_vocab_size, width)
        self.visit_order = nn.Embedding(config.max_visit_orders + 1, width)
        self.visit_segment = nn.Embedding(config.segment_vocab_size, width)
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.norm = nn.LayerNorm(width, eps=config.embedding_layer_norm_eps)
        for name, values in self._default_tables(config.vocab_size).items():
            self.register_buffer(name, values)

    def _default_tables(self, vocab_size: int) -> dict[str, Tensor]:
        hours = default_interval_hours(vocab_size, self.config.long_interval_days)
        return {
            "token_type_table": torch.tensor(default_token_types(vocab_size), dtype=torch.int8),
            "interval_hours_table": torch.tensor(hours, dtype=torch.int32),
        }

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Fill the tables, and balance the fusion's inputs.

        Concept embeddings start at `initializer_range`, sines near 1: with one scale for both, age
        and time would drown the concept. Their columns are scaled so that each part starts alike.
        """
        for name, values in self._default_tables(self.config.vocab_size).items():
            init.copy_(getattr(self, name), values)
        width, sines = self.config.hidden_size, self.config.time_embedding_size
        weight = torch.empty(self.fusion.weight.shape).uniform_(-1, 1)
        weight[:, :width] *= width**-0.5
        weight[:, width:] *= self.config.initializer_range * sines**-0.5
        init.copy_(self.fusion.weight, weight)

    @property
    def interval_days_table(self) -> Tensor:
        """Days that pass at each token, (vocab,), float32; 0 but for interval tokens."""
        return self.interval_hours_table.float() / HOURS_PER_DAY

    def set_token_types(self, types: list[int]) -> None:
        """Set the types of the ordinary tokens: see the models' method of this name."""
        first = len(SPECIAL_TYPES)
        expected = max(0, self.token_type_table.shape[0] - first)
        if len(types) != expected:
            raise ValueError(
                f"set_token_types: expected {expected} types, one for each token from {first} on, "
                f"found {len(types)}"
            )
        wrong = sorted(set(types) - {PROCEDURE, MEDICATION, LAB, OTHER})
        if wrong:
            raise ValueError(
                f"set_token_types: expected {PROCEDURE} (procedure), {MEDICATION} (medication), "
                f"{LAB} (lab) or {OTHER} (other), found {wrong}"
            )
        self.token_type_table[first:] = torch.tensor(types, dtype=torch.int8)

    def resize_tables(self, vocab_size: int) -> None:
        """Follow a resized vocabulary: new tokens are of type other and take no time."""
        kept = min(vocab_size, self.token_type_table.shape[0])
        for name, values in self._default_tables(vocab_size).items():
            old = getattr(self, name)
            new = values.to(old.device)
            new[:kept] = old[:kept]
            setattr(self, name, new)

    def derive(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        **given: Tensor | None,
    ) -> dict[str, Tensor]:
        """Complete the attribute columns of `input_ids`, (batch, length): see derive_attributes."""
        columns = {name: given.get(name) for name in ATTRIBUTES}
        if all(c is not None and c.shape == input_ids.shape for c in columns.values()):
            return cast(dict[str, Tensor], columns)
        types, days = self.token_type_table, self.interval_days_table
        return derive_attributes(input_ids, types, days, attention_mask, positions, **columns)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        ages: Tensor,
        time_stamps: Tensor,
        visit_segments: Tensor,
        visit_orders: Tensor,
    ) -> Tensor:
        """Embed tokens.

        Args:
            input_ids: (batch, length), any integer type, as all the id columns.
            token_type_ids: (batch, length).
            ages: years, (batch, length).
            time_stamps: weeks since the first event, (batch, length).
            visit_segments: (batch, length).
            visit_orders: (batch, length); above `max_visit_orders` they share its embedding.

        Returns:
            (batch, length, hidden).
        """
        orders = visit_orders.long().clamp(max=self.config.max_visit_orders)
        sines = torch.cat([self.time(time_stamps), self.age(ages)], dim=-1)
        visit = self.visit_order(orders) + self.visit_segment(visit_segments.long())
        if not self.config.learned_zero_rows:
            outside = (orders == 0).unsqueeze(-1)
            sines = sines.masked_fill(outside, 0.0)
            visit = visit.masked_fill(outside, 0.0)
        fused = self.fusion(torch.cat([self.concept(input_ids.long()), sines], dim=-1))
        summed = self.activation(fused) + self.token_type(token_type_ids.long()) + visit
        return self.norm(self.dropout(summed))


__all__ = ["EHRMambaEmbeddings"]
