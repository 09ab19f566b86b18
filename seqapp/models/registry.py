"""The registry of models; a task gives the sizes that come from its data."""

from __future__ import annotations

from torch import nn

from seqapp.registry import Registry

MODELS: Registry[nn.Module] = Registry("model", given=("vocabulary_size", "classes", "source_size"))
