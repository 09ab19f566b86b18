"""Every config in the repository loads, and the model it describes can be built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipelines.options import SECTIONS
from seqapp import config
from seqapp.models.registry import MODELS
from seqapp.tasks import TASKS
from serving import deployment

ROOT = Path(__file__).parents[1] / "configs"
DEPLOYMENTS = sorted((ROOT / "serving").rglob("*.y*ml"))
CONFIGS = sorted(set(ROOT.rglob("*.y*ml")) - set(DEPLOYMENTS))


def test_there_are_configs_and_every_file_is_one() -> None:
    assert CONFIGS
    assert DEPLOYMENTS
    assert {path for path in ROOT.rglob("*") if path.is_file()} == {*CONFIGS, *DEPLOYMENTS}
    assert all(path.suffix == ".yaml" for path in (*CONFIGS, *DEPLOYMENTS))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_config_loads_and_its_model_builds(path: Path) -> None:
    resolved = config.load(path, sections=SECTIONS)
    task = TASKS.build(resolved["task"])
    assert resolved["task"]["kind"] == path.parent.name, "configs/<task>/<name>.yaml"
    assert resolved["model"]["kind"] == task.model_kind
    sizes = dict.fromkeys(MODELS.given, 11)
    with torch.device("meta"):
        model = MODELS.build(resolved["model"], **sizes)
    parameters = list(model.parameters())
    assert parameters
    assert all(parameter.is_meta for parameter in parameters)
    again = config.load(path, sections=SECTIONS)
    assert again == resolved


@pytest.mark.parametrize("path", DEPLOYMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_server_is_to_serve_can_be_read(path: Path) -> None:
    assert deployment.read(path)


@pytest.mark.parametrize("path", [*CONFIGS, *DEPLOYMENTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_config_begins_with_a_comment_that_says_what_it_is(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")
