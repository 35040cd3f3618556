"""Odyssey checkpoints, made here, and an independent statement of the model that they belong to."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import MambaConfig, MambaForCausalLM

SPECIAL = ["[PAD]", "[UNK]", "[MASK]", "[VS]", "[VE]", "[CLS]", "[REG]"]
TIMES = [f"[W_{n}]" for n in range(4)] + [f"[M_{n}]" for n in range(13)] + ["[LT]"]
CODES = {
    "procedure_vocab": ["3893", "5A1955Z"],
    "lab_vocab": ["50912_0", "50912_4"],
    "med_vocab": ["00002821501", "123"],
}
TASKS = ["[MOR_1M]", "[LOS_1W]", "[REA_1M]", *(f"[C{n}]" for n in range(5))]
TOKENS = [*SPECIAL, *TIMES, *(code for codes in CODES.values() for code in codes), *TASKS]
WIDTH, SINES, ORDERS = 24, 6, 20


class Sines(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(1, SINES))
        self.phi = nn.Parameter(torch.randn(1, SINES))

    def forward(self, values: Tensor) -> Tensor:
        return torch.sin(values.float()[..., None] * self.w + self.phi)


class Segments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, WIDTH)


class Embeddings(nn.Module):
    """LN(tanh(W[word; sin(dt w + phi); sin(age w + phi)]) + type + order + segment)."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(rows, WIDTH)
        self.token_type_embeddings = nn.Embedding(9, WIDTH)
        self.visit_order_embeddings = nn.Embedding(ORDERS, WIDTH)
        self.time_embeddings, self.age_embeddings = Sines(), Sines()
        self.visit_segment_embeddings = Segments()
        self.scale_back_concat_layer = nn.Linear(WIDTH + 2 * SINES, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, columns: dict[str, Tensor]) -> Tensor:
        stamps = columns["time_stamps"]
        passed = torch.cat([0 * stamps[:, :1], stamps[:, 1:] - stamps[:, :-1]], dim=1)
        word = self.word_embeddings(columns["concept_ids"])
        parts = [word, self.time_embeddings(passed), self.age_embeddings(columns["ages"])]
        total = torch.tanh(self.scale_back_concat_layer(torch.cat(parts, dim=-1)))
        total = total + self.token_type_embeddings(columns["type_ids"])
        total = total + self.visit_order_embeddings(columns["visit_orders"])
        total = total + self.visit_segment_embeddings.embedding(columns["visit_segments"])
        return self.LayerNorm(total)


class Pretrained(nn.Module):
    def __init__(self, **fields: object) -> None:
        super().__init__()
        rows = len(TOKENS)
        small = {"vocab_size": rows, "hidden_size": WIDTH, "num_hidden_layers": 2, "state_size": 5}
        self.embeddings = Embeddings(rows)
        self.model = MambaForCausalLM(MambaConfig(**(small | fields)))

    def forward(self, columns: dict[str, Tensor]) -> Tensor:
        return self.model(inputs_embeds=self.embeddings(columns)).logits


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.out_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.out_proj(nn.functional.silu(self.dense(pooled)))


class Finetuned(nn.Module):
    """The state of their finetuned model: its own modules, and the pretrained model's again."""

    def __init__(self, pretrained: Pretrained) -> None:
        super().__init__()
        self.pretrained_model = pretrained
        self.embeddings = pretrained.embeddings
        self.model = nn.Module()
        self.model.backbone = pretrained.model.backbone
        self.model.classifier = Head()

    def forward(self, columns: dict[str, Tensor]) -> Tensor:
        embedded = self.embeddings(columns)
        hidden = self.model.backbone(inputs_embeds=embedded).last_hidden_state
        padded = (columns["concept_ids"] == 0).int().argmax(-1) - 1
        return self.model.classifier(hidden[torch.arange(len(hidden)), padded])


@pytest.fixture
def pretrained() -> Pretrained:
    torch.manual_seed(0)
    return Pretrained(use_bias=True, expand=3, conv_kernel=3).eval()


@pytest.fixture
def finetuned(pretrained: Pretrained) -> Finetuned:
    torch.manual_seed(1)
    return Finetuned(pretrained).eval()


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """The file of a model's state, as Lightning writes it or bare, with changes to the tensors."""

    def save(model: nn.Module, bare: bool = False, **changes: Tensor | None) -> Path:
        state = {**model.state_dict(), **changes}
        state = {name: tensor for name, tensor in state.items() if tensor is not None}
        file = tmp_path / "best.ckpt"
        torch.save(state if bare else {"state_dict": state, "epoch": 3, "callbacks": {}}, file)
        return file

    return save


@pytest.fixture
def vocabulary_file(tmp_path: Path) -> Path:
    content = {
        "special_tokens": [*SPECIAL, *TIMES],
        "tokenizer_vocab": {token: index for index, token in enumerate(TOKENS)},
        "token_type_vocab": {"special_tokens": [*SPECIAL, *TIMES], **CODES, "task_tokens": TASKS},
    }
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(content))
    return file


@pytest.fixture
def sequence() -> tuple[list[str], dict[str, Tensor]]:
    """Two visits and two pads, in their tokens and their columns; one row.

    An interval has the order of the visit before it; the first visit's segment is 2; a task token
    has the type of the [CLS] or [REG] in whose place it stands.
    """
    tokens = [
        *("[MOR_1M]", "[VS]", "50912_4", "3893", "[VE]", "[REG]", "[M_2]"),
        *("[VS]", "00002821501", "50912_0", "[VE]", "[MOR_1M]", "[PAD]", "[PAD]"),
    ]
    columns = {
        "concept_ids": [TOKENS.index(token) for token in tokens],
        "type_ids": [1, 2, 5, 7, 3, 8, 4, 2, 6, 5, 3, 8, 0, 0],
        "time_stamps": [0, *[53] * 5, 0, *[62] * 5, 0, 0],
        "ages": [0, *[60] * 5, 0, *[61] * 5, 0, 0],
        "visit_orders": [0, *[1] * 6, *[2] * 5, 0, 0],
        "visit_segments": [0, *[2] * 5, 0, *[1] * 5, 0, 0],
    }
    return tokens, {name: torch.tensor([column]) for name, column in columns.items()}
