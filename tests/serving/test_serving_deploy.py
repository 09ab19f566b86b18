"""The files in deploy/serving fit each other and the program."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient

from serving.settings import Settings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "serving"
VARIABLES = {f"SEQAPP_{name.upper()}" for name in Settings.model_fields} | {"SEQAPP_CACHE"}
DOCKERFILE = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
KUBERNETES = {
    file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in (FOLDER / "kubernetes").glob("*.yaml")
}
POD = KUBERNETES["deployment"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]


def environment() -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in CONTAINER["env"]}


def settings(given: dict[str, str], patch: pytest.MonkeyPatch) -> Settings:
    for name in VARIABLES:
        patch.delenv(name, raising=False)
    for name, value in given.items():
        patch.setenv(name, re.sub(r"\$\{\w+:-(.*?)\}", r"\1", str(value)))
    return Settings()


def test_every_setting_that_a_file_names_exists() -> None:
    for file in FOLDER.rglob("*"):
        if file.is_file():
            # ADDRESS is the composition's own.
            named = set(re.findall(r"SEQAPP_[A-Z_]+", file.read_text(encoding="utf-8"))) - {"SEQAPP_ADDRESS"}
            assert named <= VARIABLES, (file, named - VARIABLES)


def test_the_image_is_made_of_what_there_is_and_runs_as_nobody_of_note() -> None:
    _, first, second = DOCKERFILE.split("\nFROM ")
    for copied in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for source in copied.split():
            assert (ROOT / source).exists()
            assert f"!{source}\n" in (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8")
    assert re.search(r"^USER 10001:10001$", second, re.MULTILINE)
    assert "SEQAPP_PORT=8000" in second
    assert "EXPOSE 8000" in second
    torch = re.search(r'TORCH="(torch==[\d.]+)', first)
    assert torch is not None
    assert f"{torch[1]}\n" in (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_the_settings_of_the_files_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        of_compose = settings(COMPOSE["services"]["server"]["environment"], patch)
    with monkeypatch.context() as patch:
        of_pod = settings(environment(), patch)
    for given in (of_compose, of_pod):
        assert given.keys is not None  # a public address needs them
        assert given.models == []
    assert of_pod.port == CONTAINER["ports"][0]["containerPort"] == 8000
    assert of_pod.host == "0.0.0.0"
    grace = COMPOSE["services"]["server"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > of_compose.drain_delay_seconds + of_compose.shutdown_seconds + 10
    assert POD["terminationGracePeriodSeconds"] > of_pod.drain_delay_seconds + of_pod.shutdown_seconds + 10
    readiness = CONTAINER["readinessProbe"]
    assert of_pod.drain_delay_seconds > readiness["periodSeconds"] * readiness["failureThreshold"]


def test_probes_and_scrapes_ask_for_what_is_there(client: TestClient) -> None:
    asked = {CONTAINER[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    (endpoint,) = KUBERNETES["monitor"]["spec"]["endpoints"]
    (scrape,) = yaml.safe_load((FOLDER / "prometheus.yaml").read_text(encoding="utf-8"))["scrape_configs"]
    asked |= {endpoint["path"], scrape["metrics_path"]}
    asked |= set(re.findall(r"http://127.0.0.1:8000(/\w+)", DOCKERFILE))
    assert asked == {"/livez", "/readyz", "/metrics"}
    for path in asked:
        assert client.get(path).status_code == 200


def test_the_objects_of_kubernetes_name_each_other() -> None:
    kustomization = KUBERNETES["kustomization"]
    assert {f"{name}.yaml" for name in KUBERNETES} - {"kustomization.yaml", "monitor.yaml"} == set(
        kustomization["resources"]
    )
    labels = KUBERNETES["deployment"]["spec"]["template"]["metadata"]["labels"]
    for selected in (
        KUBERNETES["deployment"]["spec"]["selector"]["matchLabels"],
        KUBERNETES["service"]["spec"]["selector"],
        KUBERNETES["disruption"]["spec"]["selector"]["matchLabels"],
    ):
        assert selected.items() <= labels.items()
    monitor = KUBERNETES["monitor"]["spec"]
    assert monitor["selector"]["matchLabels"].items() <= KUBERNETES["service"]["metadata"]["labels"].items()
    (port,) = KUBERNETES["service"]["spec"]["ports"]
    assert port["name"] == monitor["endpoints"][0]["port"]
    assert port["targetPort"] == CONTAINER["ports"][0]["name"]
    assert KUBERNETES["autoscaler"]["spec"]["scaleTargetRef"]["name"] == KUBERNETES["deployment"]["metadata"]["name"]
    volumes = {volume["name"] for volume in POD["volumes"]}
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == volumes
    mounted = {mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert {str(Path(environment()["SEQAPP_KEYS"]).parent), environment()["SEQAPP_CACHE"], "/tmp"} == mounted


def test_nothing_may_be_written_and_nothing_may_be_gained() -> None:
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD["securityContext"]["runAsNonRoot"]
    assert POD["securityContext"]["runAsUser"] == 10001
    # Kubernetes would set SEQAPP_PORT=tcp://... for a service of this name.
    assert not POD["enableServiceLinks"]
    server = COMPOSE["services"]["server"]
    assert server["read_only"]
    assert server["cap_drop"] == ["ALL"]


def values(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for value in node.values():
            yield from values(value)
    elif isinstance(node, list):
        for value in node:
            yield from values(value)
    else:
        yield str(node)


def test_no_file_holds_a_secret_and_what_holds_one_is_not_kept() -> None:
    for file in (*FOLDER.glob("*.yaml"), *(FOLDER / "kubernetes").glob("*.yaml")):
        for value in values(yaml.safe_load(file.read_text(encoding="utf-8"))):
            assert not re.search(r"seqapp_[\w-]{20,}|[0-9a-f]{40,}", value), file
    ignored = (FOLDER / ".gitignore").read_text(encoding="utf-8").split()
    for secret in COMPOSE["secrets"].values():
        assert secret["file"].removeprefix(".") in ignored
