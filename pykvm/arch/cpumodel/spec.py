"""`host,+feature,-feature`: from a model's name and wishes to a set of features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pykvm.arch import cpuid
from pykvm.arch.cpumodel.depends import needed_by, requirements, without_orphans
from pykvm.arch.cpumodel.models import AMD_ONLY, DEFAULT, INTEL_ONLY, MODELS, NEVER, NOT_SHOWN
from pykvm.arch.cpumodel.topology import CpuModelError
from pykvm.typed import NamedTuple

_NEEDS_LAPIC = frozenset(["apic", "x2apic", "tsc_deadline"])


class CpuSpec(NamedTuple):
    """What a user wrote: a model's name and features to add and to take away."""

    model: str
    plus: frozenset[str] = frozenset()
    minus: frozenset[str] = frozenset()


class CpuModel(NamedTuple):
    """A model worked out for a host: what the guest's CPUID says."""

    name: str
    features: frozenset[str]
    """Names of the features that are shown."""
    refused: frozenset[str]
    """Left out of the model because the host's KVM gives up on the instructions."""
    missing: frozenset[str]
    """Part of the model, but not of what this host's KVM supports."""
    plus: frozenset[str] = frozenset()


def parse(text: str) -> CpuSpec:
    """The parts of `model,+feature,-feature`; an empty text or no model is `host`.

    The last word about a feature counts. Raises `CpuModelError` for unknown names, with near ones.
    """
    words = [word.strip().lower() for word in text.split(",")]
    model = DEFAULT
    if words[0] and words[0][0] not in "+-":
        model = words.pop(0)
    if model not in MODELS:
        raise CpuModelError(f"there is no CPU model {model!r}{_near(model, MODELS)}")
    plus: set[str] = set()
    minus: set[str] = set()
    for word in words:
        if not word:
            continue
        if word[0] not in "+-":
            raise CpuModelError(
                f"{word!r} in CPU model {text!r}: write +{word} to add a feature, -{word} to take "
                "it away"
            )
        name = feature_name(word[1:])
        wanted, other = (plus, minus) if word[0] == "+" else (minus, plus)
        wanted.add(name)
        other.discard(name)
    return CpuSpec(model, frozenset(plus), frozenset(minus))


def feature_name(text: str) -> str:
    """A feature's name as pykvm writes it: `sse4.2`, `SSE4-2` and `sse4_2` are the same."""
    known = cpuid.known_features()
    folded = text.replace(".", "_").replace("-", "_")
    if folded in known:
        return folded
    squeezed = folded.replace("_", "")
    for name in known:
        if name.replace("_", "") == squeezed:
            return name
    raise CpuModelError(f"there is no CPU feature {text!r}{_near(text, known)}")


def _near(text: str, names: Iterable[str]) -> str:
    import difflib

    known = list(names)
    near = difflib.get_close_matches(text, known, 3)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; there are {', '.join(known)}" if len(known) < 8 else ""


def available(
    supported: Sequence[cpuid.CpuidLeaf], *, tsc_deadline: bool, lapic: bool
) -> frozenset[str]:
    """Features that this host's KVM can give a guest."""
    found = set(cpuid.features(supported)) | {"hypervisor"}
    if tsc_deadline:
        found.add("tsc_deadline")
    if not lapic:
        found -= _NEEDS_LAPIC
    return without_orphans(found - NEVER)


def resolve(
    spec: CpuSpec | str,
    supported: Sequence[cpuid.CpuidLeaf],
    *,
    host_refuses: Iterable[str] = frozenset(),
    tsc_deadline: bool = False,
    lapic: bool = True,
) -> CpuModel:
    """The features of a model on this host, closed under their dependencies.

    `supported`: what KVM_GET_SUPPORTED_CPUID gave. `host_refuses`: features whose instructions the
    host's KVM does not complete; they are left out unless asked for with `+`. `tsc_deadline`: the
    host has KVM_CAP_TSC_DEADLINE_TIMER. `lapic`: the machine has an in-kernel local APIC.
    Raises `CpuModelError` for unknown names, for a wish that the host cannot fulfil, and for
    wishes that contradict each other.
    """
    wanted = parse(spec) if isinstance(spec, str) else spec
    can = available(supported, tsc_deadline=tsc_deadline, lapic=lapic)
    for name in sorted(wanted.plus):
        _check_wish(name, wanted, can)
    asked = wanted.plus.union(*map(needed_by, wanted.plus)) - NEVER
    basis = MODELS[wanted.model].features
    full = can - NOT_SHOWN if basis is None else basis
    if not lapic:
        full -= _NEEDS_LAPIC
    full -= AMD_ONLY if cpuid.vendor(supported) == "GenuineIntel" else INTEL_ONLY
    hidden = frozenset(host_refuses) & full & can - asked
    chosen = without_orphans(((full & can) - hidden | asked) - wanted.minus)
    missing = without_orphans(full - wanted.minus) - can
    return CpuModel(wanted.model, chosen, hidden - wanted.minus, missing, wanted.plus)


def _check_wish(name: str, wanted: CpuSpec, can: frozenset[str]) -> None:
    if name in NEVER:
        raise CpuModelError(
            f"the CPU feature {name} cannot be asked for: it follows from the topology or is set "
            f"by the guest itself; leave +{name} out"
        )
    if name not in can:
        lacking = sorted(needed_by(name) - can)
        because = f" (it lacks {', '.join(lacking)}, too)" if lacking else ""
        raise CpuModelError(
            f"this host's KVM cannot give a guest the CPU feature {name}{because}; leave +{name} "
            "out, or use another host"
        )
    clash = sorted(needed_by(name) & wanted.minus)
    if clash:
        raise CpuModelError(
            f"+{name} needs {clash[0]}, which -{clash[0]} takes away; leave one of them out"
        )


def orphans(features: frozenset[str]) -> dict[str, frozenset[str]]:
    """Features whose needs are not among `features`, with what they lack: empty in any model."""
    table = requirements()
    return {f: table[f] - features for f in features if f in table and not table[f] <= features}
