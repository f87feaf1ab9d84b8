"""Random wishes on random hosts: a clear refusal, or a CPU whose features fit together."""

from __future__ import annotations

from cpuid_hosts import ALL, host
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.arch import cpuid
from pykvm.arch.cpumodel import MODELS, CpuModelError, CpuTable, resolve, topology_for
from pykvm.arch.cpumodel.depends import needed_by
from pykvm.arch.cpumodel.models import NEVER
from pykvm.arch.cpumodel.spec import available, orphans, parse
from pykvm.arch.cpumodel.xsave import COMPONENT_FEATURE

FEATURES = st.sampled_from(sorted(ALL))
WISHES = st.lists(st.tuples(st.sampled_from("+-"), FEATURES), max_size=8)
HOSTS = st.builds(
    lambda vendor, missing: host(vendor, ALL - missing),
    st.sampled_from(["intel", "amd"]),
    st.frozensets(FEATURES, max_size=12),
)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(MODELS)), WISHES, HOSTS, st.frozensets(FEATURES, max_size=6),
    st.integers(1, 12), st.booleans(), st.booleans(),
)  # fmt: skip
def test_features_fit_together(
    name: str,
    wishes: list[tuple[str, str]],
    supported: list[cpuid.CpuidLeaf],
    refuses: frozenset[str],
    cpus: int,
    tsc_deadline: bool,
    lapic: bool,
) -> None:
    text = ",".join([name, *(sign + feature for sign, feature in wishes)])
    spec = parse(text)
    can = available(supported, tsc_deadline=tsc_deadline, lapic=lapic)
    said = ""
    try:
        model = resolve(
            text, supported, host_refuses=refuses, tsc_deadline=tsc_deadline, lapic=lapic
        )
    except CpuModelError as error:
        said = str(error)
    if said:
        # Only where a wish cannot be fulfilled, and the sentence names one that cannot.
        bad = {f for f in spec.plus if f in NEVER or f not in can or (needed_by(f) & spec.minus)}
        assert bad
        assert any(f in said for f in bad)
        return
    assert orphans(model.features) == {}
    assert model.features <= can
    assert not model.features & spec.minus
    assert spec.plus <= model.features
    assert not model.features & refuses - spec.plus - set().union(*map(needed_by, spec.plus))
    if not lapic:
        assert not model.features & {"apic", "x2apic", "tsc_deadline"}

    topology = topology_for(cpus)
    leaves = CpuTable(model, supported, topology, tsc_khz=3_000_000).leaves(cpus - 1)
    assert cpuid.features(leaves) - {"ht", "cmp_legacy"} == model.features
    subleaves = {x.index: x for x in leaves if x.function == 0xD}
    assert bool(subleaves) == ("xsave" in model.features)
    if subleaves:
        mask = subleaves[0].eax | subleaves[0].edx << 32 | subleaves[1].ecx
        assert mask & 3 == 3
        for component, feature in COMPONENT_FEATURE.items():
            if mask >> component & 1:
                assert feature in model.features
                assert component in subleaves
        assert subleaves[0].ecx >= max(
            [576] + [x.ebx + x.eax for n, x in subleaves.items() if n > 1 and x.ebx]
        )


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="hostpramini,+-_.avx512 \u00e9", max_size=30))
def test_any_text_is_a_model_or_one_sentence(text: str) -> None:
    said, spec = "", None
    try:
        spec = parse(text)
    except CpuModelError as error:
        said = str(error)
    if spec is None:
        assert 0 < len(said) < 400
        assert "\n" not in said
    else:
        assert spec.model in MODELS
        assert not spec.plus & spec.minus
