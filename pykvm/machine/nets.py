"""Network devices on a machine: back end, address, capture, limits."""

from __future__ import annotations

import os

from pykvm.devices.net.backend import NetBackend, NetError
from pykvm.machine.result import MachineError
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.datapath.limits import RateLimit
    from pykvm.datapath.loop import IoThread
    from pykvm.devices.net.parse import NetOptions
    from pykvm.devices.virtio.net import VirtioNet
    from pykvm.machine.machine import Machine


def add_net(
    machine: Machine,
    backend: NetBackend | str,
    *,
    mac: str | bytes | None = None,
    queues: int | None = None,
    mtu: int | None = None,
    pcap: str | os.PathLike[str] | None = None,
    iops: int = 0,
    bps: int = 0,
    native: bool = True,
    io_thread: bool | IoThread | None = None,
) -> VirtioNet:
    """See `Machine.add_net`."""
    from pykvm.devices.net import parse_mac, parse_net

    try:
        address = parse_mac(mac) if isinstance(mac, str) else mac
        options = parse_net(backend) if isinstance(backend, str) else None
        if options is not None:
            options = options._replace(
                mac=options.mac if address is None else address,
                queues=options.queues if queues is None else queues,
                mtu=options.mtu if mtu is None else mtu,
                pcap=options.pcap if pcap is None else os.fspath(pcap),
                iops=options.iops or iops,
                bps=options.bps or bps,
            )
        else:
            from pykvm.devices.net import NetOptions

            options = NetOptions(
                "", mac=address, queues=queues or 1, mtu=mtu,
                pcap="" if pcap is None else os.fspath(pcap), iops=iops, bps=bps,
            )  # fmt: skip
        return _add(
            machine, None if isinstance(backend, str) else backend, options, native, io_thread
        )
    except NetError as error:
        raise MachineError(str(error)) from error


def _add(
    machine: Machine, backend: NetBackend | None, options: NetOptions, native: bool,
    io_thread: bool | IoThread | None,
) -> VirtioNet:  # fmt: skip
    from pykvm.devices.net import PcapWriter, open_net, take_mac
    from pykvm.devices.virtio.net import VirtioNet

    if machine.board.name == "bare":
        raise MachineError('a bare board has no place for networks; use board="microvm" or "pc"')
    lease = take_mac() if options.mac is None else None
    mac = lease.address if lease is not None else options.mac
    assert mac is not None
    number = sum(isinstance(known, VirtioNet) for known in machine.virtio)
    name = f"virtio-net{number}" if number else "virtio-net"
    capture = None
    try:
        backend = open_net(options) if backend is None else backend
        capture = PcapWriter(options.pcap, name) if options.pcap else None
        device = VirtioNet(
            backend, mac, queues=options.queues, mtu=options.mtu, pcap=capture, name=name,
            limit_in=_limit(options), limit_out=_limit(options), native=native,
        )  # fmt: skip
        if lease is not None:
            device.on_close = lease.release
        machine.add_virtio(device, io_thread=io_thread)
    except BaseException:
        if backend is not None:
            backend.close()
        if capture is not None:
            capture.close()
        if lease is not None:
            lease.release()
        raise
    return device


def _limit(options: NetOptions) -> RateLimit:
    from pykvm.datapath.limits import RateLimit

    return RateLimit(options.iops, options.bps)
