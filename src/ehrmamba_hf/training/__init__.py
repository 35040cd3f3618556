"""Pretraining by next-token prediction and Multitask Prompted Finetuning, by the stock Trainer."""

from ehrmamba_hf.training.finetune import finetune
from ehrmamba_hf.training.pretrain import pretrain

__all__ = ["finetune", "pretrain"]
