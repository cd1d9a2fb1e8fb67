"""What is shipped for deployment: the Kubernetes manifest against the API's own schemas, the units against systemd."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")
kubernetes_validate = pytest.importorskip("kubernetes_validate")

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
UNITS = ("daxfs.socket", "daxfs.service", "mnt-llama.mount")
MANIFEST = DEPLOY / "kubernetes" / "daxfs.yaml"
DAXFS = Path(sysconfig.get_path("scripts")) / "daxfs"
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


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_units_are_understood(tmp_path: Path) -> None:
    def verify() -> list[str]:
        command = ["systemd-analyze", "verify", "--man=no", *(tmp_path / name for name in UNITS)]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        # Systems before 254 do not know this key, and say that they go on without it.
        return [line for line in done.stderr.splitlines() if "FileDescriptorStorePreserve" not in line]

    for name in UNITS:
        text = (DEPLOY / "systemd" / name).read_text()
        (tmp_path / name).write_text(text.replace("ExecStart=daxfs", f"ExecStart={DAXFS}"))
    assert verify() == []
    (tmp_path / "daxfs.service").write_text(f"[Service]\nExecStart={DAXFS}\nFileDescriptorStoreMaximum=1\n")
    assert any("FileDescriptorStoreMaximum" in line for line in verify()), "mistakes are found"
