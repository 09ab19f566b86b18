"""Recurrent sequence models: layers, tasks, data and the deployable bundle."""

__version__ = "0.1.0"
