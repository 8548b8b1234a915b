"""A run with a local model leaves no trace on the network, watched on a link that catches whatever leaves the machine, and
its own Ray listens to no other machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from rollout_ray.data.prepare import prepare_demo
from tests.conftest import ROOT, Command, clean_environment

DNS_SERVER = "192.0.2.53"
METADATA = "169.254.169.254"  # Ray's dashboard asks there whether it runs in a cloud, whatever its usage reports are set to

SNIFFER = """
import socket, sys
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
link.bind(("outside", 0))
print("watching", flush=True)
while True:
    packet = link.recv(4096)
    if packet[12:14] == b"\\x08\\x06":
        print("arp", socket.inet_ntoa(packet[38:42]), flush=True)
    elif packet[12:14] == b"\\x08\\x00":
        start = 14 + 4 * (packet[14] & 15)
        target, port = socket.inet_ntoa(packet[30:34]), int.from_bytes(packet[start + 2 : start + 4], "big")
        if packet[23] == 17 and port == 53:
            labels, at = [], start + 20
            while packet[at]:
                labels.append(packet[at + 1 : at + 1 + packet[at]].decode())
                at += packet[at] + 1
            print("dns", ".".join(labels), flush=True)
        else:
            print({6: "tcp", 17: "udp"}.get(packet[23], packet[23]), f"{target}:{port}", flush=True)
"""

# A pair of links: everything that is not for this machine goes out by `inside` and is seen at `outside`.
SCRIPT = """
set -e
mount --make-rprivate /
echo "nameserver {dns}" >{folder}/resolv.conf && mount --bind {folder}/resolv.conf /etc/resolv.conf
ip link add inside type veth peer name outside
for link in inside outside; do echo 1 >/proc/sys/net/ipv6/conf/$link/disable_ipv6; ip link set $link up; done
ip addr add 198.51.100.2/24 dev inside
ip route add default dev inside
mac=$(cat /sys/class/net/outside/address 2>/dev/null || ip -br link show outside | awk '{{print $3}}')
for address in {dns} {metadata} 203.0.113.7; do ip neigh add $address lladdr $mac dev inside; done
{python} -c "$SNIFFER" >{folder}/seen &
until grep -q watching {folder}/seen; do sleep 0.1; done
{python} -m rollout_ray.run --dataset {folder}/q.parquet --output_dir {folder}/run --replicas 1 >{folder}/log 2>&1
echo done >>{folder}/log
cp {folder}/seen {folder}/seen-by-run
{python} -c "import socket; socket.create_connection(('203.0.113.7', 443), 1)" 2>/dev/null || true
until grep -q 203.0.113.7:443 {folder}/seen; do sleep 0.1; done
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace with a link in it needs root")
def test_nothing_leaves_the_machine(tmp_path: Path, run_alone: Command) -> None:
    prepare_demo(4, 1, tmp_path / "q.parquet")
    script = SCRIPT.format(dns=DNS_SERVER, metadata=METADATA, folder=tmp_path, python=sys.executable)
    environment = clean_environment() | {"SNIFFER": SNIFFER}
    done = run_alone(script, ROOT, environment, unshared=("--mount",))
    assert done.returncode == 0, done.stderr + (tmp_path / "log").read_text()
    assert "4 questions, 32 trajectories" in (tmp_path / "log").read_text()
    assert "tcp 203.0.113.7:443" in (tmp_path / "seen").read_text(), "the link must catch what does leave"
    seen = set((tmp_path / "seen-by-run").read_text().splitlines()) - {"watching"}
    assert not seen


LISTENERS = """
set -e
ip link add inside type veth peer name outside
for link in inside outside; do ip link set $link up; done
ip addr add 198.51.100.2/24 dev inside
ip route add default dev inside
{python} -m rollout_ray.run --dataset {folder}/q.parquet --output_dir {folder}/run --backend simulated \\
  --sim_tokens_per_second 3000 --replicas 1 >{folder}/log 2>&1 &
driver=$!
until grep -q engine_started {folder}/run/events.jsonl 2>/dev/null; do kill -0 $driver; sleep 0.2; done
cat /proc/net/tcp /proc/net/tcp6 >{folder}/sockets
kill -TERM $driver
wait $driver || true
"""
LOOPBACK = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace with a link in it needs root")
def test_a_local_ray_listens_on_this_machine_only(tmp_path: Path, run_alone: Command) -> None:
    prepare_demo(60, 1, tmp_path / "q.parquet")
    script = LISTENERS.format(folder=tmp_path, python=sys.executable)
    done = run_alone(script, ROOT, clean_environment() | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr + (tmp_path / "log").read_text()
    lines = [line.split() for line in (tmp_path / "sockets").read_text().splitlines()]
    listening = [line[1].split(":") for line in lines if len(line) > 3 and line[3] == "0A"]
    assert len(listening) > 3, "Ray listens somewhere"
    assert not [(address, int(port, 16)) for address, port in listening if address not in LOOPBACK]
