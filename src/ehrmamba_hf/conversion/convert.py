"""From a checkpoint of another program to a model folder of this one."""

from pathlib import Path
from typing import cast

from transformers import set_seed

from ehrmamba_hf import modeling, tokenization
from ehrmamba_hf.conversion.mamba import from_mamba
from ehrmamba_hf.conversion.odyssey import Converted, from_odyssey
from ehrmamba_hf.conversion.vocabulary import read_vocabulary
from ehrmamba_hf.corpus.examples import load_tokenizer
from ehrmamba_hf.errors import InputError
from ehrmamba_hf.folders import staged
from ehrmamba_hf.tokenization import EHRMambaTokenizer

KINDS = ("odyssey", "mamba")
MARKER = "config.json"
CONTENTS = {
    *(MARKER, "generation_config.json", "model.safetensors"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *EHRMambaTokenizer.vocab_files_names.values(),
    *(
        file.name
        for room in (modeling, tokenization)
        for file in Path(cast(str, room.__file__)).parent.glob("*_ehrmamba.py")
    ),
}


def convert(
    source: Path, out: Path, *, kind: str | None = None, vocabulary: Path | None = None
) -> Path:
    """Write the model folder of a checkpoint, with its tokenizer if the vocabulary is known.

    Args:
        source: `odyssey`: a Lightning checkpoint or saved `state_dict` of the authors' code (see
            `from_odyssey` for what its columns are); `mamba`: a Mamba model's folder of
            transformers (see `from_mamba`), of which embeddings and head become new.
        out: the model folder to be.
        kind: one of `KINDS`; by default, a file is `odyssey`, and a folder `mamba`.
        vocabulary: `odyssey`: the JSON file of the checkpoint's tokenizer (see `read_vocabulary`);
            `mamba`: a data or model folder, whose tokenizer the model is for.

    Returns:
        `out`, which `EHRMambaForCausalLM`, or for a finetuned checkpoint
        `EHRMambaForSequenceClassification`, and the Auto classes load.

    Raises:
        InputError: what cannot be read or does not fit; `out` is not a folder to write to.
    """
    source, out = Path(source), Path(out)
    kind = kind or ("mamba" if source.is_dir() else "odyssey")
    if kind not in KINDS:
        raise InputError(f"kind: expected one of {', '.join(KINDS)}, found {kind}")
    set_seed(0)
    tokenizer: EHRMambaTokenizer | None
    model: Converted
    if kind == "mamba":
        tokenizer = load_tokenizer(vocabulary) if vocabulary else None
        model = from_mamba(source, tokenizer=tokenizer)
    else:
        read = read_vocabulary(vocabulary) if vocabulary else None
        tokenizer = read.tokenizer() if read else None
        model = from_odyssey(source, vocabulary=read)
    with staged(out, marker=MARKER, contents=CONTENTS) as folder:
        model.save_pretrained(str(folder))
        if tokenizer is not None:
            tokenizer.save_pretrained(str(folder))
    return out
