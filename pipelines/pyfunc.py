"""The bundle as an MLflow pyfunc model, logged from code: MLflow runs this file, so nothing is pickled."""

from typing import Any

import mlflow
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
        shared = {key: value for key, value in (params or {}).items() if key in self.bundle.task.Input.model_fields}
        records = model_input.to_dict(orient="records")
        inputs = [self.bundle.task.Input.model_validate({**record, **shared}) for record in records]
        return pandas.DataFrame([output.model_dump(exclude_none=True) for output in self.bundle.predict(inputs)])


mlflow.models.set_model(BundleModel())
