"""The bundle as an MLflow pyfunc model, logged from code: MLflow runs this file, so nothing is pickled."""

from typing import Any

import mlflow
import numpy
import pandas
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from seqapp import bundle


class BundleModel(PythonModel):
    """Answers data frames, one row an input of the task."""

    def load_context(self, context: PythonModelContext) -> None:
        self.bundle = bundle.load(context.artifacts["bundle"])

    def predict(
        self, context: PythonModelContext, model_input: pandas.DataFrame, params: dict[str, Any] | None = None
    ) -> pandas.DataFrame:
        fields = self.bundle.task.Input.model_fields
        shared = {key: value for key, value in (params or {}).items() if key in fields}
        records = [
            {key: plain(value) for key, value in record.items() if not (absent(value) and not_needed(fields, key))}
            for record in model_input.to_dict(orient="records")
        ]
        inputs = [self.bundle.task.Input.model_validate({**record, **shared}) for record in records]
        return pandas.DataFrame([output.model_dump(exclude_none=True) for output in self.bundle.predict(inputs)])


def plain(value: Any) -> Any:
    """``value`` with arrays as lists and numbers of numpy as Python's, at any depth."""
    if isinstance(value, numpy.ndarray | numpy.generic):
        value = value.tolist()
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def absent(value: Any) -> bool:
    """A cell that a data frame fills because another row has a value there."""
    return value is None or (isinstance(value, float) and value != value)


def not_needed(fields: Any, key: str) -> bool:
    """The field has a default."""
    return key in fields and not fields[key].is_required()


mlflow.models.set_model(BundleModel())
