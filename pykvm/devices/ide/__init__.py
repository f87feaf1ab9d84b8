"""IDE: two channels at the ports a PC has them at, ATA disks, ATAPI CD-ROMs, bus-master DMA.

`IdeController` is the PIIX3 function 8086:7010; `AtaDisk` and `AtapiCdrom` go on its channels.
Sources: ATA/ATAPI-7 (T13/1532D), MMC-3, INF-8090, SFF-8038i (bus master), the PIIX3 data sheet.
"""

from __future__ import annotations

from pykvm.devices.ide.ata import AtaDisk
from pykvm.devices.ide.atapi import AtapiCdrom
from pykvm.devices.ide.busmaster import BusMaster
from pykvm.devices.ide.channel import IdeChannel
from pykvm.devices.ide.controller import IdeController
from pykvm.devices.ide.medium import MediumError

__all__ = [
    "AtaDisk",
    "AtapiCdrom",
    "BusMaster",
    "IdeChannel",
    "IdeController",
    "MediumError",
]
