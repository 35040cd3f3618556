"""transformers' common tokenizer tests, run against what EHRMambaTokenizer does with plain text.

Patients, which are what it is for, are no text: the tests of that are in tests/tokenization/.
"""

import tempfile
import unittest

import pytest

import ehrmamba_hf.modeling  # noqa: F401 (registers the tokenizer beside the models)
from ehrmamba_hf.tokenization import EHRMambaTokenizer

ABSENT = "needs transformers' own tests, which `make transformers-tests` gets, and parameterized"
common = pytest.importorskip("transformers_tests.test_tokenization_common", reason=ABSENT)

# Codes that are words, for tests that look for words in the vocabulary.
WORDS = ("this", "is", "a", "test", "of", "the", "way", "with", "words", "and", "more", "text")

NOT_APPLICABLE: dict[str, tuple[str, ...]] = {
    "no pairs of sequences: the second argument is the task": (
        "test_call",
        "test_mask_output",
        "test_maximum_encoding_length_pair_input",
        "test_pretokenized_inputs",
        "test_special_tokens_mask_input_pairs",
    ),
    "no targets in another language": ("test_prepare_seq2seq_batch",),
    "no vocabulary of its own, and none in tokenizers' format": (
        "test_integration",
        "test_sequence_ids",
    ),
    "no chat, so no template among the arguments and no assistant to mask": (
        "test_chat_template_save_loading",
        "test_chat_template_return_assistant_tokens_mask",
    ),
    "vocabulary, types, bins and names are kept in files, not in the arguments": (
        "test_tokenizer_store_full_signature",
    ),
}


class EHRMambaTokenizationTest(common.TokenizerTesterMixin, unittest.TestCase):
    tokenizer_class = EHRMambaTokenizer
    not_applicable = NOT_APPLICABLE

    @classmethod
    def setUpClass(cls) -> None:
        """A folder in the place of the mixin's tokenizer from the Hub."""
        cls.tmpdirname = tempfile.mkdtemp()
        vocab = {word: 41 + index for index, word in enumerate(WORDS)}
        EHRMambaTokenizer(vocab=vocab).save_pretrained(cls.tmpdirname)
        cls.from_pretrained_id = [cls.tmpdirname]
        cls.tokenizers_list = [(cls.tokenizer_class, cls.tmpdirname, {})]
