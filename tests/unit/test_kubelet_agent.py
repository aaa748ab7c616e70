"""The whole agent beside a stand-in of the kubelet's PodResources service."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from doubles.kubelet import Kubelet, answer
from otlp_json import Reader


def test_the_agent_tells_who_has_which_device(tmp_path: Path):
    (tmp_path / "pods" / f"ml_train-0_{'0' * 32}").mkdir(parents=True)
    device = {"resource_name": "nvidia.com/gpu", "device_ids": ["GPU-1", "GPU-2"]}
    pod = {"name": "train-0", "namespace": "ml", "containers": [{"name": "main", "devices": [device]}]}
    out = tmp_path / "out.jsonl"
    settings = {
        "sources.kubelet.socket": tmp_path / "s",
        "sources.kubelet.pods_log_dir": tmp_path / "pods",
        "export.file.path": out,
        "export.otlp.metrics.enabled": "false",
        "export.otlp.traces.enabled": "false",
        "export.otlp.logs.enabled": "false",
        "ring.path": "none",
        "state.path": "none",
    }
    stand_in = Kubelet(tmp_path / "s", lambda: answer([pod]))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "fabrictap", "run", "--duration", "500ms"]
            + [part for name, value in settings.items() for part in ("--set", f"{name}={value}")],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env={
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("OTEL_", "FABRICTAP_"))
            },
        )
    finally:
        stand_in.stop()
    assert "source kubelet delivers" in done.stderr
    exported = Reader(out)
    exported.poll()
    found = list(exported.find("fabrictap.device.assignment"))
    assert {point["fabrictap.device.id"] for point in found} == {"GPU-1", "GPU-2"}
    for point in found:
        assert point.value == 1
        assert point["k8s.namespace.name"] == "ml"
        assert point["k8s.pod.name"] == "train-0"
        assert point["k8s.container.name"] == "main"
    (up,) = [
        point for point in exported.find("fabrictap.source.up") if point["fabrictap.source"] == "kubelet"
    ]
    assert up.value == 1
