"""What lies in deploy/ agrees with the code: metrics, labels, settings, ports, times, versions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import fake_models, make_settings

from server.metrics import Metrics
from translator import __version__
from translator.config import ENV_PREFIX, Settings, load_settings
from translator.service import Translator

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
TEXTS = {
    path.relative_to(DEPLOY).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted(DEPLOY.rglob("*"))
    if path.is_file()
}
# Labels that Prometheus adds to all that it scrapes.
ADDED = {"job", "instance"}


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all(TEXTS[name]))


def kubernetes(kind: str) -> list[Any]:
    found = [d for name in TEXTS if name.startswith("kubernetes/") and name.endswith(".yaml") for d in documents(name)]
    return [document for document in found if document["kind"] == kind]


def container() -> Any:
    return kubernetes("Deployment")[0]["spec"]["template"]["spec"]["containers"][0]


def expressions() -> list[str]:
    dashboard = json.loads(TEXTS["grafana/dashboard.json"])
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])] + [
        variable["query"]["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"
    ]


@pytest.fixture
async def exported() -> dict[str, set[str]]:
    """Sample -> labels, of a server that has seen everything once."""
    metrics = Metrics()
    translator = Translator(make_settings(), dict(fake_models()), metrics)
    metrics.watch(translator)
    await translator.start()
    await translator.translate(["我喜欢你家的书"], target="en")
    metrics.on_batch_failure("zh-en", 1)
    metrics.on_unfit("zh-en", "loop", True)
    metrics.on_model_loaded("fake/zh-en", 0.1)
    metrics.requests.labels("TranslateText", "OK").inc()
    metrics.latency.labels("TranslateText").observe(0.1)
    await translator.close()
    found: dict[str, set[str]] = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_the_dashboard_reads_metrics_and_labels_that_exist(exported: dict[str, set[str]]) -> None:
    assert len(expressions()) > 20
    for expression in expressions():
        names = re.findall(r"\b(?:translate|process)_\w+", expression)
        assert names, expression
        assert set(names) <= set(exported), expression
        labels = set().union(*(exported[name] for name in names)) | ADDED
        selected = re.findall(r'(\w+)(?:=~|!~|!=|=)"', expression)
        grouped = [label for group in re.findall(r"\bby \(([^)]*)\)", expression) for label in group.split(", ")]
        assert {*selected, *grouped} <= labels, expression


def test_the_dashboard_covers_the_metrics(exported: dict[str, set[str]]) -> None:
    shown = " ".join(expressions())
    for name in exported:
        base = re.sub(r"_(total|bucket|count|sum|created)$", "", name)
        if base.startswith("translate_") and "_sentences" not in base:  # those are shown in tokens and bytes
            assert base in shown, f"no panel shows {base}"


def test_panels_have_places_and_numbers_of_their_own() -> None:
    panels = json.loads(TEXTS["grafana/dashboard.json"])["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("name", TEXTS)
def test_environment_variables_are_settings(name: str) -> None:
    for variable in re.findall(rf"{ENV_PREFIX}([A-Z_]+)\b", TEXTS[name]):
        assert variable.lower() in Settings.model_fields, variable


def test_the_values_are_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    image = dict(re.findall(rf"({ENV_PREFIX}\w+)=(\S+)", TEXTS["Dockerfile"]))
    image[ENV_PREFIX + "MODEL"] = "embedded"
    config = dict(line.split("=", 1) for line in TEXTS["kubernetes/settings.env"].splitlines() if line[:1] not in "#")
    compose = documents("compose.yaml")[0]["services"]["server"]["environment"]
    for given in (config, compose):
        for variable, value in (image | given).items():
            monkeypatch.setenv(variable, value)
        settings = load_settings()
        assert settings.host == settings.metrics_host == "0.0.0.0"
        assert settings.drain_seconds == 30


def test_ports_agree() -> None:
    grpc, metrics = (Settings.model_fields[name].default for name in ("port", "metrics_port"))
    assert f"EXPOSE {grpc} {metrics}\n" in TEXTS["Dockerfile"]
    assert f'targets: ["server:{metrics}"]' in TEXTS["prometheus.yml"]
    assert documents("compose.yaml")[0]["services"]["server"]["ports"] == [f"127.0.0.1:{grpc}:{grpc}"]
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert ports == {"grpc": grpc, "metrics": metrics}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container()[probe]["grpc"] == {"port": grpc}
    annotations = kubernetes("Deployment")[0]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(metrics)
    for service in kubernetes("Service"):
        for port in service["spec"]["ports"]:
            assert port["port"] == ports[port["targetPort"]]
    monitored = kubernetes("ServiceMonitor")[0]["spec"]["endpoints"][0]["port"]
    assert [monitored in [p["name"] for p in s["spec"]["ports"]] for s in kubernetes("Service")].count(True) == 1


def test_nobody_is_killed_while_draining() -> None:
    drain = int(re.findall(r"DRAIN_SECONDS=(\d+)", TEXTS["kubernetes/settings.env"])[0])
    pause = int(container()["lifecycle"]["preStop"]["exec"]["command"][1])
    assert kubernetes("Deployment")[0]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= drain + pause + 5
    server = documents("compose.yaml")[0]["services"]["server"]
    assert int(server["stop_grace_period"].rstrip("s")) >= int(server["environment"][ENV_PREFIX + "DRAIN_SECONDS"]) + 5


def test_versions_and_users_agree() -> None:
    kustomization = documents("kubernetes/kustomization.yaml")[0]
    assert kustomization["images"][0]["newTag"] == __version__
    assert documents("compose.yaml")[0]["services"]["server"]["image"] == f"comment-translate:{__version__}"
    security = kubernetes("Deployment")[0]["spec"]["template"]["spec"]["securityContext"]
    assert f"USER {security['runAsUser']}:{security['runAsGroup']}\n" in TEXTS["Dockerfile"]


def test_every_manifest_is_listed_or_named() -> None:
    listed = TEXTS["kubernetes/kustomization.yaml"]
    for name in TEXTS:
        folder, _, file = name.rpartition("/")
        if folder == "kubernetes" and file != "kustomization.yaml":
            assert file in listed, name


def test_selectors_that_kustomize_does_not_add_are_written_out() -> None:
    pairs = documents("kubernetes/kustomization.yaml")[0]["labels"][0]["pairs"]
    for kind in ("PodDisruptionBudget", "ServiceMonitor"):
        assert kubernetes(kind)[0]["spec"]["selector"] == {"matchLabels": pairs}


def test_paths_lead_somewhere() -> None:
    services = documents("compose.yaml")[0]["services"]
    volumes = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", [])]
    assert len(volumes) == 6
    for source in volumes:
        assert source in documents("compose.yaml")[0]["volumes"] or (DEPLOY / source).exists(), source
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", TEXTS["README.md"]):
        assert (DEPLOY / link).exists(), link
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    for kept in re.findall(r"^!(.+)", ignored, re.MULTILINE):
        assert (ROOT / kept).exists(), kept
