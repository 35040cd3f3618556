"""A data folder: its labels, splits and Arrow columns, and what stops it from being written."""

import json
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehrmamba_hf.corpus import PrepareSettings, load_sequences, prepare, prepare as run
from ehrmamba_hf.corpus import prepare as prepare_function
from ehrmamba_hf.corpus.examples import load_tokenizer
from ehrmamba_hf.errors import InputError, SchemaError
from ehrmamba_hf.events.table import read_subjects
from ehrmamba_hf.tasks import registered
from ehrmamba_hf.tasks.prospective import MORTALITY
from ehrmamba_hf.tasks.registry import register, unregister
from ehrmamba_hf.timelines import SPLITS, SplitRules, iter_records, split_of, stays_of
from ehrmamba_hf.timelines.record import DAY
from ehrmamba_hf.tokenization.grammar_ehrmamba import CLS, COLUMNS
