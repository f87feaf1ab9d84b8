"""CPU models: which features, which leaves, what is refused, and with which sentence."""

from __future__ import annotations

import pytest
from cpuid_hosts import ALL, host

from pykvm.arch import cpuid
from pykvm.arch.cpumodel import (
    MODELS,
    CpuModelError,
    CpuTable,
    Leaf,
    Topology,
    cpu_leaves,
    forced,
    linux_parameters,
    parse,
    resolve,
    topology_for,
)
from pykvm.arch.cpumodel.depends import needed_by, requirements, without_orphans
from pykvm.arch.cpumodel.models import MINIMAL, NEVER, NOT_SHOWN, PORTABLE

INTEL, AMD = host("intel"), host("amd")
# A host like those without hardware virtualization: v1, some, and nothing that needs XSAVE.
SMALL = host("amd", (PORTABLE | {"clwb", "clzero"}) - {"sse3", "popcnt", "sse4_1", "rdtscp"})


def leaf(leaves: list[Leaf], function: int, index: int = 0) -> Leaf:
    (found,) = [x for x in leaves if x.function == function and x.index == index]
    return found


def test_every_name_in_the_tables_is_a_feature() -> None:
    named = MINIMAL | PORTABLE | NOT_SHOWN | NEVER | frozenset(requirements())
    named = named.union(*requirements().values())
    assert named <= ALL
    assert without_orphans(PORTABLE) == PORTABLE
    assert without_orphans(MINIMAL) == MINIMAL


def test_dependencies_have_no_cycles() -> None:
    assert not [f for f in requirements() if f in needed_by(f)]
    assert needed_by("avx512_vnni") >= {"avx512vl", "avx512f", "avx2", "avx", "xsave", "fpu"}


@pytest.mark.parametrize("supported", [INTEL, AMD])
def test_host_is_what_kvm_supports_without_what_it_cannot_serve(supported: list[Leaf]) -> None:
    model = resolve("host", supported)
    vendors = {"topoext" if supported is INTEL else "arch_capabilities"}
    assert model.features == without_orphans(ALL - NOT_SHOWN - vendors)
    assert not model.refused
    assert not model.missing
    assert resolve("", supported) == model


def test_portable_and_minimal_are_the_same_on_all_hosts_of_a_vendor() -> None:
    full = resolve("portable", AMD)
    assert full.features == PORTABLE
    assert resolve("portable", host("amd", ALL - {"avx", "svm", "clwb"})) == full
    assert resolve("portable", INTEL).features == PORTABLE - {"topoext"}
    assert resolve("minimal", AMD).features == MINIMAL
    for spec in ("portable", "minimal"):
        bare = host("amd", ALL - {"avx", "svm", "clwb"})
        same = [
            CpuTable(resolve(spec, s), s, Topology(), tsc_khz=2_000_000).leaves(0)
            for s in (AMD, bare)
        ]
        assert same[0] == same[1]


def test_a_lesser_host_says_what_is_missing() -> None:
    model = resolve("portable", SMALL)
    assert model.missing == {"sse3", "ssse3", "sse4_1", "sse4_2", "popcnt", "rdtscp"}
    assert model.features == PORTABLE - model.missing


def test_what_the_host_refuses_is_hidden_unless_asked_for() -> None:
    refuses = frozenset({"cx16", "clwb", "xsave", "avx", "sse4_2"})
    model = resolve("host", AMD, host_refuses=refuses)
    assert model.refused == refuses
    assert not model.features & (refuses | {"avx2", "avx512f", "xsaves", "pku"})
    again = resolve("host,+avx2", AMD, host_refuses=refuses)
    assert {"avx2", "avx", "xsave"} <= again.features
    assert again.refused == {"cx16", "clwb", "sse4_2"}


def test_features_are_added_with_what_they_need_and_taken_with_what_needs_them() -> None:
    model = resolve("minimal,+avx2", INTEL)
    assert model.features == MINIMAL | {"avx2", "avx", "xsave"}
    model = resolve("host,-xsave", INTEL)
    assert not model.features & {"xsave", "xsaves", "avx", "avx512f", "amx_tile", "pku", "mpx"}
    assert {"sse4_2", "aes", "sha_ni"} <= model.features
    assert "kvmclock" not in resolve("portable,-hypervisor", AMD).features


def test_the_last_word_about_a_feature_counts() -> None:
    assert parse("host,+avx,-avx").minus == {"avx"}
    assert parse("+avx").model == "host"
    assert parse(" portable , +SSE4.2,-sse4-1, ").plus == {"sse4_2"}


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("hots", r"no CPU model 'hots'; did you mean host\?"),
        ("zzz", "no CPU model 'zzz'; there are host, portable, minimal"),
        ("host,+avx3", r"no CPU feature 'avx3'; did you mean avx"),
        ("host,+", "no CPU feature ''"),
        ("host,avx", r"write \+avx to add a feature, -avx to take it away"),
        ("host,+avx2,-xsave", r"\+avx2 needs xsave, which -xsave takes away"),
        ("host,+osxsave", "cannot be asked for"),
    ],
)
def test_what_is_refused_in_one_sentence(spec: str, says: str) -> None:
    with pytest.raises(CpuModelError, match=says) as caught:
        resolve(spec, INTEL)
    assert "\n" not in str(caught.value)


def test_a_feature_that_the_host_lacks_is_refused_by_name() -> None:
    with pytest.raises(CpuModelError, match=r"feature avx2 \(it lacks avx, xsave, too\)"):
        resolve("portable,+avx2", SMALL)


def test_tsc_deadline_is_kvms_to_give_and_the_lapics_to_have() -> None:
    without = host("intel", ALL - {"tsc_deadline"})
    assert "tsc_deadline" not in resolve("host", without).features
    assert "tsc_deadline" in resolve("host", without, tsc_deadline=True).features
    none = resolve("host", INTEL, tsc_deadline=True, lapic=False)
    assert not none.features & {"apic", "x2apic", "tsc_deadline", "kvm_pv_eoi", "extapic"}


# -- leaves ------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", MODELS)
@pytest.mark.parametrize("supported", [INTEL, AMD, SMALL])
def test_the_leaves_say_the_features(spec: str, supported: list[Leaf]) -> None:
    model = resolve(spec, supported)
    leaves = CpuTable(model, supported, topology_for(4), tsc_khz=2_500_000).leaves(2)
    assert cpuid.features(leaves) - {"ht", "cmp_legacy"} == model.features
    keys = [(x.function, x.index) for x in leaves]
    assert keys == sorted(set(keys))
    assert cpuid.vendor(leaves) == cpuid.vendor(supported)
    assert cpuid.hypervisor(leaves) == "KVMKVMKVM"
    basic = [x.function for x in leaves if x.function < 0x40000000]
    extended = [x.function for x in leaves if x.function >= 0x80000000]
    assert leaf(leaves, 0).eax == max(basic)
    assert leaf(leaves, 0x80000000).eax == max(extended)
    assert all(0 <= register < 1 << 32 for x in leaves for register in x)
    assert 0xA not in basic  # no performance counters
    assert (0xD in basic) == ("xsave" in model.features)


def test_the_signature_of_fixed_models_does_not_follow_the_host() -> None:
    assert cpuid.signature(cpu_leaves("portable", AMD)) == (0x17, 1, 2)
    assert cpuid.signature(cpu_leaves("minimal", INTEL)) == (6, 0x1A, 3)
    assert cpuid.signature(cpu_leaves("host", INTEL)) == cpuid.signature(INTEL)
    assert leaf(cpu_leaves("portable", AMD), 0x80000001).eax == 0x00800F12
    assert cpuid.brand(cpu_leaves("portable", AMD)) == "pykvm portable CPU"
    assert cpuid.brand(cpu_leaves("host", AMD)) == "A CPU that was made up"


def test_amd_repeats_leaf_1() -> None:
    one = leaf(cpu_leaves("host", AMD), 1).edx
    assert leaf(cpu_leaves("host", AMD), 0x80000001).edx & 0x0183F3FF == one & 0x0183F3FF
    assert not leaf(cpu_leaves("host", INTEL), 0x80000001).edx & 0x0183F3FF


def test_xsave_components_follow_the_features() -> None:
    full = cpu_leaves("host", INTEL)
    assert leaf(full, 0xD).eax == 0x602FF
    assert leaf(full, 0xD).ecx == 2816 + 8192
    assert leaf(full, 0xD, 1).ecx == 0x1800
    assert {x.index for x in full if x.function == 0xD} == {
        0,
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        9,
        11,
        12,
        17,
        18,
    }
    some = cpu_leaves("host,-avx512f,-mpx,-pku,-amx_tile,-xsaves", INTEL)
    assert leaf(some, 0xD).eax == 7
    assert leaf(some, 0xD).ecx == 576 + 256
    assert leaf(some, 0xD, 1) == (0xD, 1, 1, 0b0111, 576, 0, 0)
    least = cpu_leaves("minimal,+xsave", INTEL)
    assert (leaf(least, 0xD).eax, leaf(least, 0xD).ecx) == (3, 576)


def test_address_widths_are_the_hosts() -> None:
    assert leaf(cpu_leaves("host", INTEL), 0x80000008).eax == 0x3934
    # 57-bit linear addresses need la57.
    assert leaf(cpu_leaves("minimal", INTEL), 0x80000008).eax == 0x3034


def test_clock_leaves() -> None:
    leaves = cpu_leaves("host", INTEL, tsc_khz=2_599_998)
    assert leaf(leaves, 0x40000000).eax == 0x40000010
    assert leaf(leaves, 0x40000010)[3:] == (2_599_998, 1_000_000, 0, 0)
    assert cpuid.tsc_hz(leaves) == 2_599_998_000
    without = cpu_leaves("host", AMD)
    assert leaf(without, 0x40000000).eax == 0x40000001
    assert 0x15 not in {x.function for x in without}
    assert 0x40000000 not in {x.function for x in cpu_leaves("host,-hypervisor", AMD)}


# -- topology ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "cpus", "expected"),
    [
        ("", 6, (1, 1, 6, 1)),
        ("sockets=2", 6, (2, 1, 3, 1)),
        ("threads=2", 8, (1, 1, 4, 2)),
        ("sockets=2,dies=2,cores=2,threads=2", 16, (2, 2, 2, 2)),
        ("cores=2,threads=2", 8, (2, 1, 2, 2)),
    ],
)
def test_topologies(text: str, cpus: int, expected: tuple[int, ...]) -> None:
    found = topology_for(cpus, text)
    assert found == expected
    assert found.cpus == cpus
    assert len(set(found.apic_ids())) == cpus
    assert topology_for(cpus, str(found)) == found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cors=2", "no CPU topology part 'cors'"),
        ("cores=0", "a number from 1"),
        ("cores=x", "a number from 1"),
        ("threads=4", "has 4 CPUs, the machine 6"),
        ("sockets=1,cores=4", "has 4 CPUs, the machine 6"),
    ],
)
def test_topologies_that_cannot_be(text: str, says: str) -> None:
    with pytest.raises(CpuModelError, match=says):
        topology_for(6, text)


def test_apic_ids_have_gaps_where_counts_are_no_powers_of_two() -> None:
    assert Topology(2, 1, 3, 2).apic_ids() == [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]


@pytest.mark.parametrize("supported", [INTEL, AMD])
@pytest.mark.parametrize(
    "topology", [Topology(), Topology(cores=64), Topology(2, 1, 3, 2), Topology(2, 2, 4, 2)]
)
def test_topology_leaves_agree(supported: list[Leaf], topology: Topology) -> None:
    table = CpuTable(resolve("host", supported), supported, topology)
    amd = supported is AMD
    for index in range(topology.cpus):
        apic_id = topology.apic_id(index)
        leaves = table.leaves(apic_id)
        one = leaf(leaves, 1)
        assert one.ebx >> 24 == apic_id
        assert (one.edx >> 28 & 1) == (topology.per_socket > 1)
        assert one.ebx >> 16 & 0xFF >= topology.per_socket
        smt, core = leaf(leaves, 0xB, 0), leaf(leaves, 0xB, 1)
        assert {smt.edx, core.edx} == {apic_id}
        assert (smt.ebx, core.ebx) == (topology.threads, topology.per_socket)
        assert (smt.ecx, core.ecx) == (0x100, 0x201)
        assert apic_id >> core.eax == index // topology.per_socket  # the socket's number
        assert (
            apic_id >> smt.eax
            == {i: topology.apic_id(i) >> topology.core_shift for i in range(topology.cpus)}[index]
        )
        caches = [x for x in leaves if x.function == (0x8000001D if amd else 4) and x.eax & 31]
        assert caches
        for cache in caches:
            shared = (cache.eax >> 14 & 0xFFF) + 1
            level = cache.eax >> 5 & 7
            assert shared == 1 << (topology.core_shift if level < 3 else topology.die_shift)
        if amd:
            sizes, node = leaf(leaves, 0x80000008), leaf(leaves, 0x8000001E)
            assert sizes.ecx & 0xFF == topology.per_socket - 1
            assert sizes.ecx >> 12 & 15 == topology.socket_shift
            assert node.eax == apic_id
            assert (node.ebx >> 8 & 0xFF) + 1 == topology.threads
        elif topology.dies > 1:
            die = leaf(leaves, 0x1F, 2)
            assert (die.ecx, die.eax, die.edx) == (0x502, topology.socket_shift, apic_id)


def test_more_than_255_apic_ids_need_x2apic() -> None:
    topology = topology_for(300)
    leaves = CpuTable(resolve("portable", INTEL), INTEL, topology).leaves(299)
    assert leaf(leaves, 0xB, 0).edx == 299
    assert leaf(leaves, 1).ebx >> 24 == 299 & 0xFF
    with pytest.raises(CpuModelError, match="needs x2apic"):
        CpuTable(resolve("portable,-x2apic", INTEL), INTEL, topology)
    with pytest.raises(CpuModelError, match="has 4 CPUs, the machine 2"):
        cpu_leaves("host", INTEL, cpus=2, topology=topology_for(4))


# -- reading back ------------------------------------------------------------------------------


def test_features_that_the_host_cannot_hide() -> None:
    model = resolve("minimal", AMD)
    leaves = CpuTable(model, AMD, Topology()).leaves(0)
    assert forced(model, leaves) == frozenset()
    changed = [x._replace(ecx=x.ecx | 1 << 23 | 1) if x.function == 1 else x for x in leaves]
    assert forced(model, changed) == {"popcnt", "sse3"}


def test_kernel_parameters_that_hide_features() -> None:
    assert linux_parameters([]) == ""
    # Linux's X86_FEATURE_*: word times 32 plus bit.
    assert linux_parameters(["smap", "popcnt"]) == f"clearcpuid={4 * 32 + 23},{9 * 32 + 20}"
    # What depends on a hidden one goes with it; that FSRM needs ERMS is unknown to Linux.
    hidden = linux_parameters(["xsave", "avx", "avx2", "erms", "fsrm"])
    assert hidden == f"clearcpuid={4 * 32 + 26},{9 * 32 + 9},{18 * 32 + 4}"
    assert linux_parameters(["kvmclock"]) == ""
