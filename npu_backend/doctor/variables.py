"""Checks of environment variables: HCCL, the allocator, the choice of devices, the network."""

import ipaddress
from collections.abc import Iterator, Mapping

from npu_backend.doctor.check import Check
from npu_backend.doctor.machine import Machine
from npu_backend.versions import EXPANDABLE_SEGMENTS, is_at_least


def variables(machine: Machine, nodes: int) -> Iterator[Check]:
    wrong = list(_wrong_variables(machine, nodes))
    yield from wrong or [Check("variables", "ok", "nothing contradicts a training run")]


def _wrong_variables(machine: Machine, nodes: int) -> Iterator[Check]:
    env = machine.environment
    connect = _number(env, "HCCL_CONNECT_TIMEOUT", 120)
    if connect is None or not 120 <= connect <= 7200:
        yield Check(
            "HCCL_CONNECT_TIMEOUT",
            "fail",
            f"{env['HCCL_CONNECT_TIMEOUT']}: not a number of seconds from 120 to 7200",
            "export HCCL_CONNECT_TIMEOUT=1200",
        )
    elif nodes > 1 and connect < 600:
        yield Check(
            "HCCL_CONNECT_TIMEOUT",
            "warn",
            f"{connect} s for {nodes} nodes that load checkpoints at their own pace",
            "export HCCL_CONNECT_TIMEOUT=1200",
        )
    execute, event = (
        _number(env, "HCCL_EXEC_TIMEOUT", 1836),
        _number(env, "HCCL_EVENT_TIMEOUT", 1868),
    )
    if execute is None or event is None or (event != 0 and event <= execute):
        yield Check(
            "HCCL_EXEC_TIMEOUT",
            "fail",
            f"HCCL_EVENT_TIMEOUT={env.get('HCCL_EVENT_TIMEOUT', 1868)} must exceed "
            f"HCCL_EXEC_TIMEOUT={env.get('HCCL_EXEC_TIMEOUT', 1836)}: else a hang looks like "
            "another error",
            "unset both, or keep HCCL_EVENT_TIMEOUT some 30 s above HCCL_EXEC_TIMEOUT",
        )
    if env.get("PYTORCH_NPU_ALLOC_CONF") and env.get("PYTORCH_ALLOC_CONF"):
        yield Check(
            "PYTORCH_ALLOC_CONF",
            "fail",
            "set together with PYTORCH_NPU_ALLOC_CONF, which torch_npu refuses",
            "unset PYTORCH_ALLOC_CONF",
        )
    yield from _allocator(machine)
    if env.get("ASCEND_LAUNCH_BLOCKING") == "1":
        yield Check(
            "ASCEND_LAUNCH_BLOCKING",
            "warn",
            "1: every operator waits for the device, which is for debugging",
            "unset ASCEND_LAUNCH_BLOCKING",
        )
    yield from _visible(machine)
    yield from _network(machine, nodes)


def _number(env: Mapping[str, str], name: str, default: int) -> int | None:
    try:
        return int(env.get(name, default))
    except ValueError:
        return None


def _allocator(machine: Machine) -> Iterator[Check]:
    conf = machine.environment.get("PYTORCH_NPU_ALLOC_CONF", "")
    if "expandable_segments:True" not in conf:
        return
    rivals = [w for w in ("max_split_size_mb", "garbage_collection_threshold") if w in conf]
    if rivals:
        yield Check(
            "PYTORCH_NPU_ALLOC_CONF",
            "fail",
            f"{conf}: expandable_segments excludes {' and '.join(rivals)}",
            "export PYTORCH_NPU_ALLOC_CONF=expandable_segments:True",
        )
    cann, driver = EXPANDABLE_SEGMENTS
    active = machine.active
    old = [
        f"{name} {have}"
        for name, have, least in (
            ("CANN", active.version if active else None, cann),
            ("driver", machine.driver, driver),
        )
        if have and not is_at_least(have, least)
    ]
    if old:
        yield Check(
            "PYTORCH_NPU_ALLOC_CONF",
            "warn",
            f"expandable_segments needs CANN {cann} and driver {driver}, here: {', '.join(old)}",
            "unset PYTORCH_NPU_ALLOC_CONF, or upgrade",
        )


def _visible(machine: Machine) -> Iterator[Check]:
    chosen = machine.environment.get("ASCEND_RT_VISIBLE_DEVICES")
    known = {n.index for n in machine.npus} or {int(p.name[7:]) for p in machine.nodes}
    if chosen is None or not known:
        return
    words = [word.strip() for word in chosen.split(",")]
    bad = [word for word in words if not word.isdecimal() or int(word) not in known]
    if bad:
        listed = ",".join(map(str, sorted(known)))
        yield Check(
            "ASCEND_RT_VISIBLE_DEVICES",
            "fail",
            f"{chosen!r}: no NPU {', '.join(bad) or 'at all'} here",
            f"choose from {listed}, or unset it",
        )


def _network(machine: Machine, nodes: int) -> Iterator[Check]:
    env = machine.environment
    for name in ("HCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        value = env.get(name, "").lstrip("=^")
        absent = [n for n in value.split(",") if n and not _has_interface(machine, n)]
        if absent and machine.interfaces:
            yield Check(
                name,
                "fail",
                f"{env[name]}: no interface {', '.join(absent)}",
                f"export {name}= one of {', '.join(machine.interfaces)}",
            )
    if env.get("HCCL_IF_IP"):
        try:
            ipaddress.ip_address(env["HCCL_IF_IP"])
        except ValueError:
            yield Check(
                "HCCL_IF_IP",
                "fail",
                f"{env['HCCL_IF_IP']}: not an IP address",
                "export HCCL_IF_IP= the address of this host that the other nodes reach",
            )
    if nodes > 1 and not (env.get("HCCL_SOCKET_IFNAME") or env.get("HCCL_IF_IP")):
        usable = [n for n in machine.interfaces if n != "lo" and not n.startswith("docker")]
        yield Check(
            "HCCL_SOCKET_IFNAME",
            "warn",
            f"not set for a run over {nodes} nodes: HCCL picks an interface by itself",
            f"export HCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME={(usable or ['eth0'])[0]}, the "
            "interface the nodes share",
        )


def _has_interface(machine: Machine, name: str) -> bool:
    # HCCL takes prefixes: eth stands for eth0, eth1, ...
    return any(have.startswith(name) for have in machine.interfaces)
