"""The same classifier for MLflow: `python save_mlflow.py FOLDER TARGET`, for `mlflow models serve -m TARGET`."""

from __future__ import annotations

import sys
from pathlib import Path

import mlflow

if __name__ == "__main__":
    folder, target = sys.argv[1:]
    here = Path(__file__).parent
    mlflow.pyfunc.save_model(
        target, python_model=str(here / "mlflow_model.py"), artifacts={"folder": folder},
        code_paths=[str(here / "model.py")], pip_requirements=[],
    )  # fmt: skip
