"""A conversation with the stub, without a machine: replies, resuming, interrupts, bad peers."""

from __future__ import annotations

import socket
import time
import xml.etree.ElementTree as ET

import pytest
from gdb_fakes import Conversation, FakeTarget
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.lab.gdb.commands import Commands
from pykvm.lab.gdb.descriptions import Arch, describe
from pykvm.lab.gdb.packets import PACKET_SIZE, Kind
from pykvm.lab.gdb.session import Ending
from pykvm.lab.gdb.target import SIGTRAP, How, Point, Resume, Stop


def ask(packet: bytes, target: FakeTarget | None = None) -> bytes:
    return Commands(target or FakeTarget()).reply(packet)


# -- questions ---------------------------------------------------------------------------------


def test_features_are_announced() -> None:
    features = ask(b"qSupported:multiprocess+;swbreak+").split(b";")
    assert b"PacketSize=%x" % PACKET_SIZE in features
    assert {b"QStartNoAckMode+", b"qXfer:features:read+", b"swbreak+", b"hwbreak+"} <= set(features)
    assert b"ReverseStep+" not in features
    recorded = FakeTarget()
    recorded.can_reverse = True
    assert b"ReverseStep+;ReverseContinue+" in ask(b"qSupported", recorded)


@pytest.mark.parametrize("arch", list(Arch))
@pytest.mark.parametrize("avx", [False, True])
def test_descriptions_are_well_formed(arch: Arch, avx: bool) -> None:
    description = describe(arch, avx)
    root = ET.fromstring(description.xml)
    assert root.findtext("architecture") == arch
    names = [reg.get("name") for reg in root.iter("reg")]
    assert names == [r.name for r in description.registers]
    assert len(set(names)) == len(names)
    assert ("ymm0h" in names) == avx
    defined = {e.get("id") for tag in ("flags", "vector", "union") for e in root.iter(tag)}
    builtin = {"int", "int32", "int64", "uint32", "uint64", "uint128", "i387_ext", "code_ptr",
               "data_ptr"}  # fmt: skip
    assert {reg.get("type") for reg in root.iter("reg")} <= defined | builtin


def test_the_description_arrives_in_pieces() -> None:
    commands = Commands(FakeTarget())
    document, more = b"", True
    while more:
        reply = commands.reply(b"qXfer:features:read:target.xml:%x,100" % len(document))
        more = reply[:1] == b"m"
        assert len(reply) <= 0x101
        document += reply[1:]
    assert document.decode() == describe(Arch.X86_64, True).xml
    assert commands.reply(b"qXfer:features:read:target.xml:ffffff,10") == b"l"
    assert commands.reply(b"qXfer:features:read:other.xml:0,10") == b"E00"


def test_registers_all_and_one() -> None:
    target = FakeTarget()
    commands = Commands(target)
    everything = commands.reply(b"g")
    registers = describe(Arch.X86_64, True).registers
    assert len(everything) == 2 * sum(r.size for r in registers)
    assert b"x" * 8 in everything  # fop, which cannot be read
    number = [r.name for r in registers].index("rip")
    assert commands.reply(b"p%x" % number) == b"0010000000000000"
    assert commands.reply(b"P%x=efbeadde00000000" % number) == b"OK"
    assert target.values[0]["rip"] == 0xDEADBEEF
    assert commands.reply(b"Hg2") == b"OK"
    assert commands.reply(b"p%x" % number) == b"0020000000000000"
    changed = b"11" * 8 + everything[16:]
    assert commands.reply(b"G" + changed) == b"E01"  # cr8
    assert target.values[1]["rax"] == 0x1111111111111111


def test_memory_is_read_up_to_a_hole_and_written() -> None:
    target = FakeTarget()
    commands = Commands(target)
    assert commands.reply(b"m1000,4") == b"00010203"
    assert commands.reply(b"m1ffe,8") == b"feff"
    assert commands.reply(b"x1023,3") == b"b}\x03}\x04\x25"
    assert commands.reply(b"m0,4") == b"E01"
    assert commands.reply(b"M1000,2:beef") == b"OK"
    assert commands.reply(b"X1002,2:\x01\x02") == b"OK"
    assert target.memory[:4] == b"\xbe\xef\x01\x02"
    assert commands.reply(b"X1002,0:") == b"OK"  # a probe
    assert len(commands.reply(b"m1000,ffffffffffffffff")) <= PACKET_SIZE


def test_breakpoints_and_watchpoints() -> None:
    target = FakeTarget()
    commands = Commands(target)
    for digit in b"01234":
        assert commands.reply(b"Z%c,1000,1" % digit) == b"OK"
    assert target.points == {(point, 0x1000, 1) for point in Point}
    assert commands.reply(b"Z0,1000,1;X3,220027") == b"OK"
    assert commands.reply(b"z0,1000,1") == b"OK"
    assert (Point.SOFTWARE, 0x1000, 1) not in target.points
    assert commands.reply(b"Z9,1000,1") == b""
    assert commands.reply(b"Z2,1000,9") == b"E01"


def test_threads_are_the_cpus() -> None:
    commands = Commands(FakeTarget())
    assert commands.reply(b"qfThreadInfo") == b"m1,2"
    assert commands.reply(b"qsThreadInfo") == b"l"
    assert commands.reply(b"qThreadExtraInfo,2") == b"CPU#1".hex().encode()
    assert commands.reply(b"T2") == b"OK"
    assert commands.reply(b"T3") == b"E01"
    assert commands.reply(b"Hg3") == b"E01"
    assert commands.reply(b"qC") == b"QC1"


def test_monitor_commands_and_why() -> None:
    commands = Commands(FakeTarget())
    reply = commands.reply(b"qRcmd," + b"walk 1".hex().encode())
    assert bytes.fromhex(reply.decode()) == b"0: walk 1\n"
    assert commands.reply(b"qRcmd,") == b"OK"
    assert commands.reply(b"m0,1") == b"E01"
    why = bytes.fromhex(commands.reply(b"qRcmd," + b"why".hex().encode()).decode())
    assert b"nothing is mapped at 0x0" in why


def test_errors_as_text_for_who_wants_them() -> None:
    commands = Commands(FakeTarget())
    assert b"error-message+" in commands.reply(b"qSupported:error-message+")
    assert commands.reply(b"Z2,1000,9") == b"E.too long"
    assert commands.reply(b"m0,4") == b"E01"


@pytest.mark.parametrize(
    "packet",
    [b"p", b"pzz", b"p1000", b"pffffffffffffffffff", b"P1", b"P1=0", b"P1=zz", b"G00", b"m", b"m1",
     b"m1,", b"m,1", b"m-1,1", b"m1,1x", b"M1000,2:b", b"M1000,4:00", b"X1000,1:", b"Z0", b"Z0,1",
     b"z1,,", b"Hg", b"Hgx", b"T", b"qThreadExtraInfo,", b"qRcmd,zz", b"qRcmd,1",
     b"qXfer:features:read:target.xml:", b"qXfer:features:read:target.xml:0"],
)  # fmt: skip
def test_nonsense_is_an_error(packet: bytes) -> None:
    assert ask(packet) == b"E01"


@pytest.mark.parametrize("packet", [b"", b"qCRC:0,1", b"vMustReplyEmpty", b"vFile:open", b"Hx1"])
def test_unknown_packets_get_nothing(packet: bytes) -> None:
    assert ask(packet) == b""


@given(st.binary(max_size=60))
def test_no_packet_raises(packet: bytes) -> None:
    assert isinstance(ask(packet), bytes)


@given(st.sampled_from(b"gGpPmxMXZzHTqv!"), st.binary(max_size=60))
def test_no_packet_with_a_known_letter_raises(letter: int, rest: bytes) -> None:
    assert isinstance(ask(bytes((letter,)) + rest), bytes)


# -- running -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packet", "wanted"),
    [
        (b"vCont;c", Resume(How.CONTINUE)),
        (b"vCont;C05", Resume(How.CONTINUE)),
        (b"vCont;s:2;c", Resume(How.STEP, 1)),
        (b"vCont;s:2", Resume(How.STEP, 1, only=True)),
        (b"vCont;S05:1;c", Resume(How.STEP, 0)),
        (b"vCont;r1000,1010:1;c", Resume(How.STEP_RANGE, 0, False, 0x1000, 0x1010)),
        (b"vCont;c:2", Resume(How.CONTINUE, 1, only=True)),
        (b"vCont;t:1;c", Resume(How.CONTINUE, 1, only=True)),
        (b"c", Resume(How.CONTINUE)),
        (b"s", Resume(How.STEP)),
        (b"C05", Resume(How.CONTINUE)),
    ],
)
def test_resuming(packet: bytes, wanted: Resume) -> None:
    with Conversation() as talk:
        assert talk.client.ask(packet) == b"T05thread:2;core:1;swbreak:;"
        assert talk.target.resumed == [wanted]
        assert talk.client.ask(b"qC") == b"QC2"  # who stopped is who is looked at


@pytest.mark.parametrize(
    "packet", [b"vCont;", b"vCont;x", b"vCont;s:9", b"vCont;r1000:1", b"vCont;t", b"czz", b"bc"]
)
def test_resuming_nonsense_runs_nothing(packet: bytes) -> None:
    with Conversation() as talk:
        assert talk.client.ask(packet) == b"E01"
        assert talk.target.resumed == []


def test_an_address_to_go_on_at() -> None:
    with Conversation() as talk:
        talk.client.ask(b"s1234")
        assert talk.target.values[0]["rip"] == 0x1234


def test_going_back_with_a_recording() -> None:
    target = FakeTarget()
    target.can_reverse = True
    with Conversation(target) as talk:
        assert talk.client.ask(b"bc") == b"T05thread:1;core:0;replaylog:begin;"
        talk.client.ask(b"bs")
    assert [r.how for r in target.resumed] == [How.BACK, How.STEP_BACK]


def test_the_interrupt_byte_stops_a_run() -> None:
    target = FakeTarget()
    target.next_stop = None
    with Conversation(target) as talk:
        for _ in range(20):
            talk.client.send(b"vCont;c")
            talk.client.socket.sendall(b"\x03")  # often before the run has begun
            assert (talk.client.reply() or b"").startswith(b"T02")
        target.next_stop = Stop(SIGTRAP, 1, "swbreak:")
        assert talk.client.ask(b"vCont;c") == b"T05thread:2;core:1;swbreak:;"


def test_an_interrupt_just_before_the_run_counts() -> None:
    with Conversation() as talk:
        talk.client.socket.sendall(b"\x03")
        assert talk.client.ask(b"vCont;c") == b"T02thread:1;core:0;"
        assert talk.target.resumed == []
        assert talk.client.ask(b"vCont;c") == b"T05thread:2;core:1;swbreak:;"


def test_an_interrupt_while_it_stands_still_is_dropped() -> None:
    with Conversation() as talk:
        talk.client.socket.sendall(b"\x03\x03")
        assert talk.client.ask(b"qC") == b"QC1"
        assert talk.client.ask(b"vCont;c") == b"T05thread:2;core:1;swbreak:;"


def test_text_for_the_user_comes_before_the_stop() -> None:
    target = FakeTarget()
    target.next_stop = Stop(SIGTRAP, text="ring 3 cannot be stepped here")
    with Conversation(target) as talk:
        shown = talk.client.ask(b"vCont;s:1") or b""
        assert bytes.fromhex(shown[1:].decode()) == b"ring 3 cannot be stepped here\n"
        assert talk.client.reply() == b"T05thread:1;core:0;"


def test_the_guests_end() -> None:
    target = FakeTarget()
    target.next_stop = Stop(SIGTRAP, exit_code=3)
    with Conversation(target) as talk:
        assert talk.client.ask(b"vCont;c") == b"W03"
        assert talk.finished() is Ending.EXITED


def test_run_again_in_extended_mode() -> None:
    target = FakeTarget()
    target.next_stop = Stop(SIGTRAP, exit_code=3)
    with Conversation(target) as talk:
        assert talk.client.ask(b"!") == b"OK"
        assert talk.client.ask(b"vCont;c") == b"W03"
        assert talk.client.ask(b"vRun;") == b"T05thread:1;core:0;"
        assert target.resets == 1


@pytest.mark.parametrize(
    ("packet", "ending", "reply"),
    [(b"D", Ending.DETACHED, b"OK"), (b"D;1", Ending.DETACHED, b"OK"),
     (b"vKill;1", Ending.KILLED, b"OK"), (b"k", Ending.KILLED, None)],
)  # fmt: skip
def test_leaving_takes_the_breakpoints_along(
    packet: bytes, ending: Ending, reply: bytes | None
) -> None:
    with Conversation() as talk:
        talk.client.ask(b"Z0,1000,1")
        assert talk.client.ask(packet) == reply
        assert talk.finished() is ending
        assert not talk.target.points


# -- acknowledgments and bad peers -------------------------------------------------------------


def test_acknowledgments_until_they_are_switched_off() -> None:
    with Conversation() as talk:
        talk.client.send(b"qC")
        assert [talk.client.message().kind for _ in range(2)] == [Kind.ACK, Kind.PACKET]  # type: ignore[union-attr]
        talk.client.socket.sendall(b"-")
        assert talk.client.message().data == b"QC1"  # type: ignore[union-attr]
        talk.client.socket.sendall(b"$qC#00")
        assert talk.client.message().kind is Kind.NACK  # type: ignore[union-attr]
        assert talk.client.ask(b"QStartNoAckMode") == b"OK"
        talk.client.acks = False
        talk.client.socket.sendall(b"+$qC#00")
        assert talk.client.message().data == b"E01"  # type: ignore[union-attr]
        talk.client.send(b"qC")
        assert talk.client.message().data == b"QC1"  # type: ignore[union-attr]


def test_a_peer_that_is_never_content_is_left() -> None:
    with Conversation() as talk:
        talk.client.ask(b"qC")
        talk.client.socket.sendall(b"-" * 100)
        assert talk.finished() is Ending.LOST


def test_a_peer_that_only_listens_still_gets_its_replies() -> None:
    with Conversation() as talk:
        talk.client.send(b"qC")
        talk.client.send(b"qfThreadInfo")
        talk.client.socket.shutdown(socket.SHUT_WR)
        assert talk.client.reply() == b"QC1"
        assert talk.client.reply() == b"m1,2"
        assert talk.finished() is Ending.LOST


@pytest.mark.parametrize("leave", ["close", "half", "talk"])
def test_a_peer_that_leaves_during_a_run_ends_it(leave: str) -> None:
    target = FakeTarget()
    target.next_stop = None
    with Conversation(target) as talk:
        talk.client.send(b"vCont;c")
        while not target.resumed:
            time.sleep(0.001)
        if leave == "half":
            talk.client.socket.shutdown(socket.SHUT_WR)
        elif leave == "close":
            talk.client.socket.close()
        else:  # says what only one at rest may be told, and more than is kept
            for _ in range(1000):
                try:
                    talk.client.send(b"g")
                except OSError:
                    break
        assert talk.finished() is Ending.LOST


@settings(max_examples=20)
@given(st.lists(st.binary(max_size=50), max_size=5))
def test_noise_never_hangs_a_session(pieces: list[bytes]) -> None:
    target = FakeTarget()
    with Conversation(target) as talk:
        for piece in pieces:
            talk.client.socket.sendall(piece)
        talk.client.socket.shutdown(socket.SHUT_WR)
        talk.finished()
