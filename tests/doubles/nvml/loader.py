"""Profiles of nodes (profiles/*.yaml), and how one is written into a node.

A profile is a mapping; its first comment says what machine it is after and what in it is assumed.

- ``driver``, ``nvml``: versions; ``node``: numbers of the node (NODE_VALUES in names.h).
- ``gpus.count``; ``gpus.texts`` and ``gpus.values`` (GPU_TEXTS, VALUES): one for all GPUs, or a list with one
  each. A text may hold ``{index}``. ``gpus.rates``: what of ``values`` moves, per second.
- ``gpus.fields``: field ids without scope, by NVML's name without NVML_FI_DEV_.
- ``gpus.gpm``: percentages, by NVML's name without NVML_GPM_METRIC_.
- ``nvlink``: ``links``; ``fields`` of each link, ``values`` (LINK_VALUES); ``switches``: bus of the switch at
  the end of each link; ``views``: the counters that this GPU has of its traffic (throughput, packets, gpm);
  ``tx_bytes_per_s`` and ``rx_bytes_per_s`` of each link.
- ``c2c``: ``links``, ``fields`` of each, ``bytes_per_s`` in each direction.
- ``pcie``: ``views`` (fields, gpm), ``tx_bytes_per_s`` and ``rx_bytes_per_s``.
- ``mig``: by GPU the list of instances (MIG_VALUES).
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pynvml
import yaml

if TYPE_CHECKING:
    from doubles.nvml.driver import Node

DIRECTORY = Path(__file__).parent / "profiles"
_KEYS = {"driver", "nvml", "node", "gpus", "nvlink", "c2c", "pcie", "mig"}


def names() -> list[str]:
    """The profiles there are."""
    return sorted(path.stem for path in DIRECTORY.glob("*.yaml"))


def load(name: str) -> dict[str, Any]:
    """Read a profile. Raises ValueError for one that does not exist or has a key that nobody reads."""
    if name not in names():
        raise ValueError(f"no profile {name}; there are {', '.join(names())}")
    profile = yaml.safe_load((DIRECTORY / f"{name}.yaml").read_text())
    if unknown := set(profile) - _KEYS:
        raise ValueError(f"{name}.yaml: unknown keys {', '.join(sorted(unknown))}")
    return dict(profile)


def field(name: str) -> int:
    """A field id by NVML's name without its prefix. Raises AttributeError for one that NVML does not have."""
    return int(getattr(pynvml, f"NVML_FI_DEV_{name}"))


def apply(node: Node, profile: dict[str, Any]) -> None:
    """Write ``profile`` into a new node."""
    node.versions(profile["driver"], profile["nvml"])
    for name, value in profile.get("node", {}).items():
        node.node_value(name).set(value)
    count = profile["gpus"]["count"]
    node.gpus(count)
    for gpu in range(count):
        _gpu(node, gpu, profile["gpus"])
        _nvlink(node, gpu, profile.get("nvlink", {"links": 0}))
        _c2c(node, gpu, profile.get("c2c", {}))
        _pcie(node, gpu, profile.get("pcie", {}))
    for gpu, instances in profile.get("mig", {}).items():
        _mig(node, gpu, instances)


def _of(value: Any, gpu: int) -> Any:
    return value[gpu] if isinstance(value, list) else value


def _gpu(node: Node, gpu: int, section: dict[str, Any]) -> None:
    for name, text in section["texts"].items():
        node.text(gpu, name, str(_of(text, gpu)).format(index=gpu))
    for name, value in section["values"].items():
        node.value(gpu, name).set(_of(value, gpu))
    for name, rate in section.get("rates", {}).items():
        node.value(gpu, name).rate(rate)
    for name, value in section.get("fields", {}).items():
        node.field(gpu, field(name)).set(_of(value, gpu))
    for name, percent in section.get("gpm", {}).items():
        node.gpm(gpu, getattr(pynvml, f"NVML_GPM_METRIC_{name}")).set(round(percent * 1000))


def _nvlink(node: Node, gpu: int, section: dict[str, Any]) -> None:
    links = section["links"]
    node.value(gpu, "nvlink_links").set(links)
    views = section.get("views", [])
    for link in range(links):
        for name, value in section.get("fields", {}).items():
            node.field(gpu, field(name), link).set(_of(value, link))
        for name, value in section.get("values", {}).items():
            node.link_value(gpu, link, name).set(_of(value, link))
        if "switches" in section:
            node.link_value(gpu, link, "remote_bus").set(section["switches"][link])
        counters = [node.field(gpu, one, link) for one in range(138, 142) if "throughput" in views]
        counters += [node.field(gpu, one, link) for one in range(201, 205) if "packets" in views]
        counters += [node.gpm(gpu, 261 + 2 * link + up) for up in (0, 1) if "gpm" in views]
        for counter in counters:
            counter.set(0)
        rates = {key: section[key] for key in ("tx_bytes_per_s", "rx_bytes_per_s")}
        node.nvlink(gpu, link, **rates)


def _c2c(node: Node, gpu: int, section: dict[str, Any]) -> None:
    for link in range(section.get("links", 0)):
        for name, value in section["fields"].items():
            node.field(gpu, field(name), link).set(value)
    if section:
        node.field(gpu, field("C2C_LINK_COUNT")).set(section["links"])
        for metric in range(100, 104):
            node.gpm(gpu, metric).set(0).rate(section["bytes_per_s"])


def _pcie(node: Node, gpu: int, section: dict[str, Any]) -> None:
    views = section.get("views", [])
    if "fields" in views:
        node.field(gpu, field("PCIE_COUNT_TX_BYTES")).set(0)
        node.field(gpu, field("PCIE_COUNT_RX_BYTES")).set(0)
    if "gpm" in views:
        node.gpm(gpu, 255).set(0)
        node.gpm(gpu, 256).set(0)
    node.pcie(gpu, tx_bytes_per_s=section.get("tx_bytes_per_s"), rx_bytes_per_s=section.get("rx_bytes_per_s"))


def _mig(node: Node, gpu: int, instances: list[dict[str, int]]) -> None:
    node.value(gpu, "mig_mode_current").set(1)
    node.value(gpu, "mig_mode_pending").set(1)
    for slot, instance in enumerate(instances):
        node.add_mig(gpu, slot, f"MIG-{uuid.uuid5(uuid.NAMESPACE_OID, f'{gpu}/{slot}')}", **instance)
