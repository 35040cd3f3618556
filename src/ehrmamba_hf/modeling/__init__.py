"""The EHRMamba model: the files of this folder go to the Hub with every saved model.

They import their siblings, torch and transformers only; this file stays behind. Importing it
registers the classes, so that transformers' Auto classes find them without `trust_remote_code`.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from ehrmamba_hf.modeling.attributes_ehrmamba import ATTRIBUTES, derive_attributes
from ehrmamba_hf.modeling.configuration_ehrmamba import EHRMambaConfig
from ehrmamba_hf.modeling.generation_ehrmamba import HorizonCriteria, SequenceGrammarProcessor
from ehrmamba_hf.modeling.history_ehrmamba import EHRMambaHistory
from ehrmamba_hf.modeling.modeling_ehrmamba import (
    EHRMambaForCausalLM,
    EHRMambaForSequenceClassification,
    EHRMambaModel,
    EHRMambaPreTrainedModel,
)
from ehrmamba_hf.modeling.selective_scan_ehrmamba import selective_scan
from ehrmamba_hf.tokenization import EHRMambaTokenizer

AutoConfig.register(EHRMambaConfig.model_type, EHRMambaConfig)
AutoModel.register(EHRMambaConfig, EHRMambaModel)
AutoModelForCausalLM.register(EHRMambaConfig, EHRMambaForCausalLM)
AutoModelForSequenceClassification.register(EHRMambaConfig, EHRMambaForSequenceClassification)
AutoTokenizer.register(EHRMambaConfig, EHRMambaTokenizer)

__all__ = [
    "ATTRIBUTES",
    "EHRMambaConfig",
    "EHRMambaForCausalLM",
    "EHRMambaForSequenceClassification",
    "EHRMambaHistory",
    "EHRMambaModel",
    "EHRMambaPreTrainedModel",
    "HorizonCriteria",
    "SequenceGrammarProcessor",
    "derive_attributes",
    "selective_scan",
]
