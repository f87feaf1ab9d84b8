"""A server in a file system of its own that holds the shared directory and nothing else.

For servers that trust their client with paths. The program starts in a mount namespace whose root
is a small tmpfs with the shared directory at `/share` and the system's programs and libraries; once
it runs, those are taken away too, so that neither `..` nor a symbolic link leads anywhere. The
shared directory is mounted without device files and set-uid programs. It has no network and sees no
other process. Works for root, and for others where the host lets them have user namespaces.
"""

from __future__ import annotations

import os
import shutil

from pykvm.errors import PykvmError

SHARE = "/share"
READY = b"pykvm-sandbox-ready"
_KEPT = "chown dac_override dac_read_search fowner fsetid setgid setuid"
_TOOLS = ("unshare", "sh", "mount", "umount", "pivot_root", "setpriv")
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

# $1: an empty directory for the root, $2: what is shared, $3: mount options, $4: capabilities.
_SCRIPT = """
set -e
root=$1 dir=$2 options=$3 caps=$4
shift 4
mount -t tmpfs -o mode=0755,size=1m,nosuid,nodev none "$root"
mkdir "$root/share" "$root/old" "$root/dev"
mount --bind "$dir" "$root/share"
mount -o "remount,bind,$options" "$root/share"
: >"$root/dev/null"
mount --bind /dev/null "$root/dev/null"
for d in usr bin sbin lib lib32 lib64 nix gnu; do
    if [ -L "/$d" ]; then cp -P "/$d" "$root/$d"
    elif [ -d "/$d" ]; then mkdir "$root/$d"; mount --rbind "/$d" "$root/$d"; fi
done
mkdir "$root/etc" "$root/proc"
mount --rbind /proc "$root/proc"
if [ -f /etc/ld.so.cache ]; then cp /etc/ld.so.cache "$root/etc/"; fi
cd "$root"
pivot_root . old
umount -l /old
rmdir /old
setpriv --no-new-privs --inh-caps=-all --bounding-set="$caps" "$@" <&- &
read -r started
gone=
for d in /usr /bin /sbin /lib /lib32 /lib64 /nix /gnu; do
    if [ -d "$d" ] && [ ! -L "$d" ]; then gone="$gone $d"; fi
done
umount -l $gone /proc
echo pykvm-sandbox-ready
read -r never
"""


class SandboxError(PykvmError):
    """A sandbox that this host or its user rights do not allow."""


def command(argv: list[str], directory: str, root: str, *, readonly: bool) -> list[str]:
    """The command line that runs `argv` (which finds the directory at SHARE) in a sandbox.

    `root` is an empty directory of ours. When the program runs, a line on standard input locks the
    door, and READY is printed; the end of standard input ends it. Raises `SandboxError`.
    """
    for tool in _TOOLS:
        if shutil.which(tool, path=_PATH) is None:
            raise SandboxError(f"the sandbox needs {tool} (package util-linux or mount)")
    # What the file system was mounted with must stay, in a user namespace.
    flags = os.statvfs(directory).f_flag
    options = ["nosuid", "nodev"]
    if readonly or flags & os.ST_RDONLY:
        options.append("ro")
    if flags & os.ST_NOEXEC:
        options.append("noexec")
    if flags & os.ST_NOATIME:
        options.append("noatime")
    elif flags & os.ST_RELATIME:
        options.append("relatime")
    unshare = [
        shutil.which("unshare", path=_PATH) or "unshare", "--mount", "--pid", "--net", "--ipc",
        "--uts", "--fork", "--kill-child=KILL",
    ]  # fmt: skip
    if os.geteuid() != 0:
        unshare.append("--map-root-user")  # to mount; the program itself is the user again
        user, group = os.geteuid(), os.getegid()
        kept = "setfcap setgid setuid"  # what it takes to map this namespace's root
        argv = ["unshare", "--user", f"--map-user={user}", f"--map-group={group}", *argv]
    else:
        kept = _KEPT
    caps = ",".join(["-all", *("+" + name for name in kept.split())])
    # dash as pid 1 of the namespace: when it ends, so does all in it.
    shell = ["env", f"PATH={_PATH}", "sh", "-c", _SCRIPT, "sandbox"]
    return [*unshare, *shell, root, directory, ",".join(options), caps, *argv]
