"""`pykvm guests`: what there is, and how to run it."""

from __future__ import annotations

import json
import os
import shlex

import pytest
from cli_command import pykvm

from pykvm import images


def test_the_list_has_every_guest() -> None:
    done = pykvm("guests")
    assert done.returncode == 0
    listed = {line.split()[0] for line in done.stdout.split("\n\n")[0].splitlines()}
    assert listed == set(images.names())


def test_json_has_every_guest() -> None:
    told = json.loads(pykvm("guests", "--json").stdout)
    assert set(told) == set(images.names())
    for name, guest in told.items():
        assert guest["name"] == name
        assert guest["description"]
        assert os.path.isfile(guest["path"])
        assert guest["mode"] in ("real", "protected", "long")
        assert 0 <= guest["expect"]["exit_code"] <= 255


def test_one_guest_in_full() -> None:
    done = pykvm("guests", "pio-loop")
    assert done.returncode == 0
    assert "port accesses to make (4 bytes at 0x1004" in done.stdout
    assert "ends with exit status 1" in done.stdout
    told = json.loads(pykvm("guests", "pio-loop", "--json").stdout)
    assert told["params"]["count"]["size"] == 4


@pytest.mark.kvm
@pytest.mark.parametrize("name", ["hello64", "pio-loop", "spin"])
def test_the_command_that_it_gives_works(name: str) -> None:
    command = shlex.split(pykvm("guests", name).stdout.splitlines()[-1])
    assert command[:2] == ["pykvm", "run"]
    assert pykvm(*command[1:]).returncode == images.find(name).expect.exit_code
