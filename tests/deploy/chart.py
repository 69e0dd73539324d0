"""Renders the Helm chart with the real ``helm``."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from tests.programs import needed
from tests.service import ROOT

CHART = ROOT / "deploy" / "helm" / "pipeserve"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
MINIMAL = CHART / "ci" / "minimal-values.yaml"
EVERYTHING = CHART / "ci" / "everything-values.yaml"
NAMESPACE = "pipelines"

Object = dict[str, Any]


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    program = needed("helm", "https://helm.sh/docs/intro/install", variable="PIPESERVE_HELM")
    command = [program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def template(file: Path, *settings: str, chart: Path = CHART) -> subprocess.CompletedProcess[str]:
    """``helm template`` of a release ``live``; each of ``settings`` is one ``--set``."""
    sets = [word for setting in settings for word in ("--set", setting)]
    return helm("template", "live", chart, "--namespace", NAMESPACE, "--values", file, *sets)


@cache
def render(file: Path, *settings: str) -> Rendered:
    """The objects that these values give."""
    done = template(file, *settings)
    assert done.returncode == 0, done.stderr
    return Rendered([found for found in yaml.safe_load_all(done.stdout) if found])


@dataclass(frozen=True)
class Rendered:
    """What would be sent to the cluster."""

    objects: list[Object]

    def of(self, kind: str, name: str = "") -> Object:
        """The one object of this kind whose name ends so."""
        [found] = [o for o in self.objects if o["kind"] == kind and o["metadata"]["name"].endswith(name)]
        return found

    def all_of(self, kind: str) -> list[Object]:
        """All of this kind."""
        return [o for o in self.objects if o["kind"] == kind]

    def pod(self, component: str) -> Object:
        """The specification of the pods of "api" or "worker"."""
        return self.of("Deployment", f"-{component}")["spec"]["template"]["spec"]

    def pods(self) -> list[Object]:
        """The specifications of all pods, those of tests too."""
        templates = [o["spec"]["template"] for o in self.all_of("Deployment")] + self.all_of("Pod")
        return [found["spec"] for found in templates]

    def environment(self, component: str) -> dict[str, str]:
        """Variables that have a value; those from a Secret have its name and key."""
        [container] = self.pod(component)["containers"]
        return {entry["name"]: _value(entry) for entry in container["env"]}


def _value(entry: Object) -> str:
    if "value" in entry:
        return entry["value"]
    [(_, source)] = entry["valueFrom"].items()
    return f"{source['name']}/{source['key']}"
