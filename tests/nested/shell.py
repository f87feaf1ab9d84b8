"""Runs one command in the nested tier: `python tests/nested/shell.py COMMAND…`. Its output
comes here, its exit status is ours; 125 if the machine ended without one."""

from __future__ import annotations

import pathlib
import shlex
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "guests")]

from nested.machine import Machine  # noqa: E402

MARK = b"\n=status "


def main() -> int:
    command = shlex.join(sys.argv[1:]) if len(sys.argv) > 2 else " ".join(sys.argv[1:])
    script = f'{{ {command}\n}} >"$0" 2>&1; echo "\n=status $?" >"$0"; sleep 1'
    machine = Machine(["/bin/sh", "-c", script], cpus=2)
    kept = b""
    try:
        while MARK not in kept or not kept.endswith(b"\n"):
            data = machine.agent.recv(65536)
            if not data:
                break
            kept = kept[-64:] + data
            sys.stdout.buffer.write(data.partition(MARK)[0])
            sys.stdout.flush()
        status = kept.rpartition(MARK)[2].strip()
        if not status.isdigit():
            print(machine.last_words(), file=sys.stderr)
        return int(status) if status.isdigit() else 125
    finally:
        machine.close()


if __name__ == "__main__":
    sys.exit(main())
