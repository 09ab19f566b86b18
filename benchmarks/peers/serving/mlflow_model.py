"""What `save_mlflow.py` saves, as code."""

from __future__ import annotations

from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Sentiment(PythonModel):  # type: ignore[misc]
    """A list of texts a request."""

    def load_context(self, context: Any) -> None:
        from model import Predictor

        self.predictor = Predictor(context.artifacts["folder"])

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads hints
        return self.predictor(list(model_input))


set_model(Sentiment())
