"""From what a user types (`stdio`, `file:log`, `tcp:localhost:4444,server`) to a back end."""

from __future__ import annotations

from pykvm.devices.chardev.base import Chardev, ChardevError, NullChardev

FORMS = (
    "stdio[,signals=off][,input=off], null, file:PATH[,append], pty[:LINK], "
    "unix:PATH[,server][,nowait][,reconnect=SECONDS] or tcp:HOST:PORT[,...]"
)


def open_chardev(spec: str) -> Chardev:
    """The back end that `spec` asks for, not started.

    `stdio`: the program's own stdin and stdout. `signals=off` gives Ctrl-C to the guest,
    `input=off` leaves stdin alone. `null`: swallow everything. `file:PATH`: output into a file,
    emptied first without `append`. `pty`, `pty:LINK`: a new pseudo-terminal, with a symbolic link
    to it. `unix:PATH`, `tcp:HOST:PORT`: connect to a socket; with `server` listen on it, and
    wait for the first connection unless `nowait`; `reconnect=SECONDS` has a client try again.

    Raises `ChardevError` for anything else.
    """
    kind, colon, rest = spec.partition(":")
    if not colon:
        kind, _, tail = spec.partition(",")
        rest = "," + tail if tail else ""
    if "\0" in spec:
        raise ChardevError(f"serial back end {spec!r} holds a NUL byte; leave it out")
    if kind == "stdio" and not colon:
        options = _Options(spec, rest, signals="on", input="on")
        from pykvm.devices.chardev.stdio import StdioChardev

        return StdioChardev(signals=options.switch("signals"), input=options.switch("input"))
    if kind == "null" and not colon:
        _Options(spec, rest)
        return NullChardev()
    if kind == "file" and colon:
        options = _Options(spec, rest, append="off")
        from pykvm.devices.chardev.file import FileChardev

        return FileChardev(options.value("a path"), append=options.switch("append"))
    if kind == "pty":
        options = _Options(spec, rest, link="")
        from pykvm.devices.chardev.pseudoterminal import PtyChardev

        return PtyChardev(link=options.path or options["link"] or None)
    if kind in ("unix", "tcp") and colon:
        return _socket(spec, kind, rest)
    raise ChardevError(f"serial back end {spec!r} is not known; give one of {FORMS}")


def _socket(spec: str, kind: str, rest: str) -> Chardev:
    options = _Options(spec, rest, server="off", wait="on", nowait="off", reconnect="")
    address: str | tuple[str, int] = options.value("a path" if kind == "unix" else "HOST:PORT")
    if kind == "tcp":
        address = _host_and_port(spec, options.path)
    server = options.switch("server")
    reconnect: float | None = None
    if options["reconnect"]:
        try:
            reconnect = float(options["reconnect"])
        except ValueError:
            reconnect = 0.0
        if not 0.01 <= reconnect <= 86400:
            raise ChardevError(
                f"{spec}: reconnect={options['reconnect']} is not a time; "
                "give seconds, at least 0.01"
            )
    if server and reconnect is not None:
        raise ChardevError(f"{spec}: a server does not reconnect; leave out one of the two options")
    wait = options.switch("wait") and not options.switch("nowait")
    from pykvm.devices.chardev.sockets import SocketChardev

    return SocketChardev(address, server=server, wait=wait, reconnect=reconnect)


def _host_and_port(spec: str, text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port[:6]) > 65535:
        raise ChardevError(f"{spec}: {text!r} is not HOST:PORT; the port is a number up to 65535")
    return host.removeprefix("[").removesuffix("]"), int(port)


class _Options:
    """`PATH,name,name=value`: options are taken from the end, so that a path may have commas."""

    def __init__(self, spec: str, text: str, **defaults: str) -> None:
        self._spec = spec
        self._values = dict(defaults)
        while True:
            head, comma, option = text.rpartition(",")
            name, equals, value = option.partition("=")
            if not comma or name not in defaults:
                break
            self._values[name] = value if equals else "on"
            text = head
        self.path = text
        if text.startswith(","):
            known = ", ".join(defaults) or "none"
            raise ChardevError(f"{spec}: option {text[1:]!r} is not known; there are: {known}")

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def value(self, what: str) -> str:
        """What comes before the options; must be there."""
        if not self.path:
            raise ChardevError(f"{self._spec!r} lacks {what}; give one of {FORMS}")
        return self.path

    def switch(self, name: str) -> bool:
        """An option that is on or off."""
        value = self._values[name]
        if value not in ("on", "off"):
            raise ChardevError(f"{self._spec}: {name}={value} is neither on nor off")
        return value == "on"
