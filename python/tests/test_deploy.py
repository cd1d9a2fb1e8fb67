"""The Kubernetes manifest against the API's own schemas."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")
kubernetes_validate = pytest.importorskip("kubernetes_validate")

MANIFEST = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes" / "daxfs.yaml"
# The oldest that is of interest, and the newest that the validator knows.
VERSIONS = ["1.27", kubernetes_validate.latest_version()]


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(MANIFEST.read_text()))


@pytest.mark.parametrize("version", VERSIONS)
def test_manifest_is_valid(version: str) -> None:
    assert [document["kind"] for document in documents()] == ["Namespace", "DaemonSet", "Pod"]
    for document in documents():
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_mistakes_are_found(version: str) -> None:
    daemon_set = documents()[1]
    for key, value in (("imagePullPolicies", "Never"), ("command", "daxfs serve")):
        wrong = copy.deepcopy(daemon_set)
        wrong["spec"]["template"]["spec"]["containers"][0][key] = value
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, version, strict=True)


def test_only_the_socket_is_shared() -> None:
    pods = [documents()[1]["spec"]["template"]["spec"], documents()[2]["spec"]]
    for pod in pods:
        assert not {"hostIPC", "hostPID", "hostNetwork"} & set(pod)
        for container in pod["containers"]:
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert "privileged" not in container["securityContext"]
    sockets = [volume["hostPath"]["path"] for pod in pods for volume in pod["volumes"] if volume["name"] == "socket"]
    assert sockets == ["/run/daxfs"] * 2
    assert [mount["readOnly"] for mount in pods[1]["containers"][0]["volumeMounts"]] == [True]
