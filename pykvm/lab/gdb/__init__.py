"""A GDB remote stub over the lab: `gdb -ex "target remote :1234"` debugs the guest.

`GdbServer` listens and talks with one GDB at a time; docs/gdb.md has sessions as one types them.

- `packets.py` framing; `wire.py` numbers and threads in packets; `commands.py` what is answered
  at once; `session.py` one conversation; `connection.py`, `server.py` sockets and threads.
- `descriptions.py` the target descriptions; `registers.py` a vCPU's registers as GDB counts them.
- `target.py` what the protocol needs of a debuggee; `labtarget.py` the lab as one; `monitor.py`
  the `monitor` commands.

All modules but the last two know nothing of the lab.
"""
