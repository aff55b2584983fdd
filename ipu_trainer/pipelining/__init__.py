"""Splitting any Transformers model into pipeline stages, without a subclass per model."""

from ipu_trainer.pipelining.anatomy import Anatomy, PipeliningError, find_anatomy
from ipu_trainer.pipelining.pipeline import Pipeline, pipelined

__all__ = ["Anatomy", "Pipeline", "PipeliningError", "find_anatomy", "pipelined"]
