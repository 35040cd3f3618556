"""The vocabulary of an Odyssey checkpoint, in the order and with the names of ours.

Theirs (odyssey/data/tokenizer.py, `ConceptTokenizer`): [PAD] [UNK] [MASK] [VS] [VE] [CLS] [REG],
then [W_0..3] [M_0..12] [LT], the codes of each kind without their system, and, unless for one task
alone, [MOR_1M] [LOS_1W] [REA_1M] [C0..4].
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.tokenization import EHRMambaTokenizer
from ehrmamba_hf.tokenization.grammar_ehrmamba import SPECIAL_TOKENS, TASK_TOKENS
from ehrmamba_hf.tokenization.tokenization_ehrmamba import DEFAULT_TASK_TOKENS

# Ours to theirs. Their code has two conditions more, which take tokens kept free for tasks.
TASKS = {
    **{"[MOR]": "[MOR_1M]", "[LOS]": "[LOS_1W]", "[REA]": "[REA_1M]"},
    **{"[C0]": "[C0]", "[C1]": "[C1]", "[C2]": "[C2]", "[TASK_0]": "[C3]", "[TASK_1]": "[C4]"},
}
MORE_TASK_TOKENS = {"condition_3": "[TASK_0]", "condition_4": "[TASK_1]"}

# A part of their vocabulary files' names, and the type of token in them.
_KINDS = {"lab": "lab", "med": "medication", "proc": "procedure"}
_LAB = re.compile(r"(\d+)_(\d)")
# MIMIC-IV's codes, by their form: https://mimic.mit.edu/docs/iv/modules/hosp/
_FORMS = (
    ("medication", "NDC", re.compile(r"\d{11}")),
    ("procedure", "ICD10PCS", re.compile(r"[0-9A-HJ-NP-Z]{7}")),
    ("procedure", "ICD9PCS", re.compile(r"\d{3,4}")),
)


@dataclass(frozen=True, slots=True)
class OdysseyVocabulary:
    """A vocabulary of theirs, read.

    Attributes:
        tokens: our tokens by our id; the special ones first, then the codes in their order.
        rows: for each of them, the row of their tables that it takes.
        types: the type of each code's token.
        size: the rows of their tables.
    """

    tokens: tuple[str, ...]
    rows: tuple[int, ...]
    types: Mapping[str, str]
    size: int

    def tokenizer(self) -> EHRMambaTokenizer:
        """A tokenizer with these tokens.

        It has no bins, as theirs are saved nowhere: an event's code has to be the token itself,
        bin and all (`MIMIC_LAB/50912//Q3`); a code with a value would be unknown.
        """
        return EHRMambaTokenizer(
            vocab={token: index for index, token in enumerate(self.tokens)},
            types=self.types,
            task_tokens=DEFAULT_TASK_TOKENS | MORE_TASK_TOKENS,
        )


def read_vocabulary(file: Path) -> OdysseyVocabulary:
    """Read the JSON that their tokenizer saves; or one of `tokenizers`; or token to id alone.

    Codes get the names that this package gives them where the form tells the system: labs
    `{item}_{bin}` become `MIMIC_LAB/{item}//Q{bin + 1}`, medications of 11 digits `NDC/{code}`,
    procedures `ICD10PCS/{code}` or `ICD9PCS/{code}`; others stay as they are. Their own file also
    tells the kind of each code, without which the form decides alone. Special tokens that they do
    not have (task tokens) take the rows of [MASK], which next-token prediction never sees.

    Raises:
        InputError: no such file, no vocabulary, ids other than 0, 1, 2 ... once each, or a special
            token missing.
    """
    file = Path(file)
    vocab, kinds = _read(file)
    tokens = sorted(vocab, key=vocab.__getitem__)
    if [vocab[token] for token in tokens] != list(range(len(tokens))):
        raise InputError(f"{file}: expected the ids 0 to {len(tokens) - 1} once each, found others")
    missing = [t for t in SPECIAL_TOKENS if t not in TASK_TOKENS and t not in vocab]
    if missing:
        raise InputError(f"{file}: expected the special tokens of Odyssey, {missing} not found")
    rows = [vocab.get(TASKS.get(token, token), vocab["[MASK]"]) for token in SPECIAL_TOKENS]
    special = {*SPECIAL_TOKENS, *TASKS.values()}
    codes = [token for token in tokens if token not in special]
    named = [named_code(token, kinds.get(token)) for token in codes]
    return OdysseyVocabulary(
        tokens=(*SPECIAL_TOKENS, *(name for name, _ in named)),
        rows=(*rows, *(vocab[token] for token in codes)),
        types=dict(named),
        size=len(tokens),
    )


def named_code(token: str, kind: str | None = None) -> tuple[str, str]:
    """Our name and token type of one of their codes, of a known kind or of any.

    >>> named_code("50912_2"), named_code("3893")
    (('MIMIC_LAB/50912//Q3', 'lab'), ('ICD9PCS/3893', 'procedure'))
    >>> named_code("00002821501", "medication"), named_code("3893", "medication")
    (('NDC/00002821501', 'medication'), ('3893', 'medication'))
    """
    lab = _LAB.fullmatch(token)
    if lab and kind in (None, "lab"):
        return f"MIMIC_LAB/{lab[1]}//Q{int(lab[2]) + 1}", "lab"
    for wanted, system, form in _FORMS:
        if kind in (None, wanted) and form.fullmatch(token):
            return f"{system}/{token}", wanted
    return token, kind or "other"


def _read(file: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Token to id, and, where the file tells, token to kind."""
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: expected a JSON file with a vocabulary, found {error}") from None
    vocab, lists = content, {}
    if isinstance(content, dict) and "tokenizer_vocab" in content:
        vocab, lists = content["tokenizer_vocab"], content.get("token_type_vocab", {})
    elif isinstance(content, dict) and isinstance(content.get("model"), dict):
        vocab = content["model"].get("vocab")
    if not isinstance(vocab, dict) or not all(isinstance(i, int) for i in vocab.values()):
        raise InputError(f"{file}: expected a vocabulary, token to id, found none")
    kinds = {
        token: kind
        for name, tokens in lists.items()
        for word, kind in _KINDS.items()
        if word in name
        for token in tokens
    }
    return vocab, kinds
