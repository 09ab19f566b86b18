"""The files in deploy/tracking fit each other, the MLflow that is installed, and the page that tells of them."""

import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "tracking"


@pytest.fixture(scope="module")
def stack() -> Any:
    return yaml.safe_load((FOLDER / "compose.yaml").read_text())


def test_the_server_knows_every_option_and_variable(stack: Any) -> None:
    from mlflow.cli import cli  # warns of itself, which is an error before the fixtures stand

    server = stack["services"]["mlflow"]
    program, command, *options = server["command"]
    known = {name: option for option in cli.commands[command].params for name in option.opts}
    assert program == "mlflow"
    assert {option.partition("=")[0] for option in options} <= known.keys()
    variables = {str(option.envvar) for option in known.values()}
    assert {"MLFLOW_BACKEND_STORE_URI", "MLFLOW_SERVER_ALLOWED_HOSTS"} <= variables & server["environment"].keys()
    own = {name for name in server["environment"] if name not in variables and name.startswith("MLFLOW_")}
    source = Path(str(metadata.distribution("mlflow").locate_file("mlflow/environment_variables.py"))).read_text()
    assert all(f'"{name}"' in source for name in own)


def test_the_image_has_the_version_that_the_project_pins() -> None:
    (version,) = re.findall(r"mlflow==(\S+)", (FOLDER / "Dockerfile").read_text())
    assert version == metadata.version("mlflow")
    assert f"MLflow {version}" in (ROOT / "docs" / "tracking.md").read_text()


def test_what_a_person_sets_is_in_the_example_and_no_password_is(stack: Any) -> None:
    used = dict(re.findall(r"\$\{(\w+):([?-][^}]*)\}", (FOLDER / "compose.yaml").read_text()))
    example = (FOLDER / ".env.example").read_text()
    assert used.keys() == set(re.findall(r"^(?:# )?([A-Z_]+)=", example, re.MULTILINE))
    for name, rest in used.items():
        if "PASSWORD" in name:
            assert rest.startswith("?")
            assert re.search(rf"^{name}=$", example, re.MULTILINE)
        else:
            # What holds without a choice is what the example shows.
            assert f"# {name}={rest.removeprefix('-')}\n" in example
    assert ".env" in (FOLDER / ".gitignore").read_text().split()


def test_it_is_reached_from_its_own_machine_only_and_starts_in_order(stack: Any) -> None:
    services = stack["services"]
    assert services["mlflow"]["ports"] == ["${MLFLOW_ADDRESS:-127.0.0.1:5000}:5000"]
    assert "ports" not in services["database"]
    assert services["mlflow"]["depends_on"] == {"database": {"condition": "service_healthy"}}
    for service in services.values():
        assert service["healthcheck"]["test"][0] == "CMD"
        assert service["restart"] == "unless-stopped"
        for volume in service["volumes"]:
            assert volume.partition(":")[0] in stack["volumes"]
