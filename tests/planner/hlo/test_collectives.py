"""Collectives of programs written by hand: groups, time on the links, what is waited for."""

import dataclasses

import pytest
from planner.hlo.by_hand import CHIP, HEADER, analysis

from siglip2_jax.planner.hlo.program import analyse
from siglip2_jax.train.chips import V5E


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("[4,2]<=[8]", 2),
        ("[2,4]<=[4,2]T(1,0)", 4),
        ("mesh['replica'=2,'fsdp'=4] {'fsdp'}", 4),
        ("mesh['axis_0'=4,'axis_1'=1,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_0'}", 4),
        ("mesh['replica'=2,'fsdp'=4] {'replica','fsdp'}", 8),
        ("mesh['replica'=2,'fsdp'=4] {'replica','fsdp':(2)2}", 4),
        ("{}", 8),
    ],
)
def test_group_sizes(groups, size):
    result = analysis(f"""ENTRY %main (x: f32[16]) -> f32[16] {{
  %x = f32[16]{{0}} parameter(0)
  ROOT %y = f32[16]{{0}} all-reduce(%x), channel_id=1, replica_groups={groups}, to_apply=%add
}}
""")
    assert result.collectives == {"all-reduce": 2 * 64 * (size - 1) // size}


def test_a_collective_spread_over_fusions_counts_once():
    gather = (
        "all-gather(%p), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}, "
        'frontend_attributes={chain_id="0"}'
    )
    result = analysis(f"""%start (p: f32[8,128]) -> (f32[8,128], f32[32,128], u32[]) {{
  %p = f32[8,128]{{1,0:T(8,128)}} parameter(0)
  %g = f32[32,128]{{1,0:T(8,128)}} {gather}
  ROOT %c = (f32[8,128], f32[32,128], u32[]{{:S(2)}}) custom-call(%g), \
custom_call_target="AsyncCollectiveStart"
}}

%middle (p: f32[8,128], b: f32[32,128], x: f32[8,128]) -> (f32[8,128], f32[32,128], f32[32,128]) {{
  %p = f32[8,128]{{1,0:T(8,128)}} parameter(0)
  %b = f32[32,128]{{1,0:T(8,128)}} parameter(1)
  %x = f32[8,128]{{1,0:T(8,128)}} parameter(2)
  %n = f32[8,128]{{1,0:T(8,128)}} negate(%x)
  %g = f32[32,128]{{1,0:T(8,128)}} {gather}
  ROOT %t = (f32[8,128], f32[32,128], f32[32,128]) tuple(%n, %b, %g)
}}

%end (p: f32[8,128], b: f32[32,128]) -> f32[32,128] {{
  %p = f32[8,128]{{1,0:T(8,128)}} parameter(0)
  %b = f32[32,128]{{1,0:T(8,128)}} parameter(1)
  %g = f32[32,128]{{1,0:T(8,128)}} {gather}
  ROOT %d = f32[32,128]{{1,0:T(8,128)}} custom-call(%p, %b, %g), \
custom_call_target="AsyncCollectiveDone"
}}

ENTRY %main (w: f32[8,128], y: f32[8,128]) -> f32[32,128] {{
  %w = f32[8,128]{{1,0:T(8,128)}} parameter(0)
  %y = f32[8,128]{{1,0:T(8,128)}} parameter(1)
  %s = (f32[8,128], f32[32,128], u32[]{{:S(2)}}) fusion(%w), kind=kCustom, calls=%start
  %w1 = f32[8,128]{{1,0:T(8,128)}} get-tuple-element(%s), index=0
  %b1 = f32[32,128]{{1,0:T(8,128)}} get-tuple-element(%s), index=1
  %m = (f32[8,128], f32[32,128], f32[32,128]) fusion(%w1, %b1, %y), kind=kLoop, calls=%middle
  %b2 = f32[32,128]{{1,0:T(8,128)}} get-tuple-element(%m), index=1
  ROOT %e = f32[32,128]{{1,0:T(8,128)}} fusion(%w1, %b2), kind=kCustom, calls=%end
}}
""")
    tile = 8 * 128 * 4
    assert result.collectives == {"all-gather": 3 * tile}
    assert {op.name: op.hbm_bytes for op in result.operations} == {"s": 5 * tile, "m": 2 * tile}


def test_an_all_reduce_of_which_a_part_is_kept_is_a_reduce_scatter():
    result = analysis("""%scatter (p: f32[32,128], i: s32[]) -> f32[8,128] {
  %p = f32[32,128]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %all = f32[32,128]{1,0} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %mine = f32[8,128]{1,0} dynamic-slice(%all, %i, %i), dynamic_slice_sizes={8,128}
}

ENTRY %main (g: f32[32,128], k: s32[]) -> f32[8,128] {
  %g = f32[32,128]{1,0} parameter(0)
  %k = s32[] parameter(1)
  ROOT %r = f32[8,128]{1,0} fusion(%g, %k), kind=kCustom, calls=%scatter
}
""")
    assert result.collectives == {"reduce-scatter": 32 * 128 * 4 * 3 // 4}


def test_parts_of_several_arrays_are_kept_at_once():
    result = analysis("""%scatter (p: f32[32,128], q: f32[8,128], i: s32[]) -> \
(f32[8,128], f32[2,128]) {
  %p = f32[32,128]{1,0} parameter(0)
  %q = f32[8,128]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %all = (f32[32,128]{1,0}, f32[8,128]{1,0}) all-reduce(%p, %q), \
replica_groups={{0,1,2,3}}, to_apply=%add
  %a = f32[32,128]{1,0} get-tuple-element(%all), index=0
  %x = f32[8,128]{1,0} dynamic-slice(%a, %i, %i), dynamic_slice_sizes={8,128}
  %b = f32[8,128]{1,0} get-tuple-element(%all), index=1
  %y = f32[2,128]{1,0} dynamic-slice(%b, %i, %i), dynamic_slice_sizes={2,128}
  ROOT %t = (f32[8,128]{1,0}, f32[2,128]{1,0}) tuple(%x, %y)
}

ENTRY %main (g: f32[32,128], h: f32[8,128], k: s32[]) -> (f32[8,128], f32[2,128]) {
  %g = f32[32,128]{1,0} parameter(0)
  %h = f32[8,128]{1,0} parameter(1)
  %k = s32[] parameter(2)
  ROOT %r = (f32[8,128]{1,0}, f32[2,128]{1,0}) fusion(%g, %h, %k), kind=kCustom, calls=%scatter
}
""")
    assert result.collectives == {"reduce-scatter": (32 + 8) * 128 * 4 * 3 // 4}


def scatter_time(target):
    """A fusion that scatters 16 KB over four chips with links of 10 GB/s, at one cycle a ns."""
    chip = dataclasses.replace(CHIP, ici_bandwidth=1e10)
    body = f"""%scatter (p: f32[32,128], i: s32[]) -> f32[8,128] {{
  %p = f32[32,128]{{1,0}} parameter(0)
  %i = s32[] parameter(1)
  %all = f32[32,128]{{1,0}} all-reduce(%p), replica_groups={{{{0,1,2,3}}}}, to_apply=%add
  ROOT %mine = f32[8,128]{{1,0}} {target}
}}

ENTRY %main (g: f32[32,128], k: s32[]) -> f32[8,128] {{
  %g = f32[32,128]{{1,0}} parameter(0)
  %k = s32[] parameter(1)
  ROOT %r = f32[8,128]{{1,0}} fusion(%g, %k), kind=kCustom, calls=%scatter
}}
"""
    (op,) = analyse(HEADER + body, chip).operations
    return op.cycles, op.timed_by


def test_a_collective_that_is_waited_for_takes_the_time_of_the_links():
    part = "dynamic-slice(%all, %i, %i), dynamic_slice_sizes={8,128}"
    assert scatter_time(part) == (round(32 * 128 * 4 * 3 / 4 / 10), "links")
    start = 'custom-call(%all), custom_call_target="AsyncCollectiveStart"'
    assert scatter_time(start) == (None, None)


@pytest.mark.parametrize("opcode", ["call", "async-start"])
def test_a_computation_that_is_started_is_not_waited_for(opcode):
    result = analysis(f"""%inner (p: f32[1024]) -> f32[1024] {{
  %p = f32[1024]{{0}} parameter(0)
  ROOT %all = f32[1024]{{0}} all-reduce(%p), replica_groups={{{{0,1}}}}, to_apply=%add
}}

ENTRY %main (g: f32[1024]) -> f32[1024] {{
  %g = f32[1024]{{0}} parameter(0)
  ROOT %r = f32[1024]{{0}} {opcode}(%g), {"to_apply" if opcode == "call" else "calls"}=%inner
}}
""")
    (op,) = result.operations
    assert op.collectives == {"all-reduce": 4096}
    links = 4096 / V5E.ici_bandwidth * 1e9
    memory = 2 * 4096 / 1e11 * 1e9
    assert op.cycles == (round(max(links, memory)) if opcode == "call" else None)


def test_asynchronous_collectives_count_where_they_start():
    result = analysis("""ENTRY %main (w: f32[8,128]) -> f32[8,128] {
  %w = f32[8,128]{1,0:T(8,128)} parameter(0)
  %start = (f32[8,128]{1,0:T(8,128)}, f32[32,128]{1,0:T(8,128)}) all-gather-start(%w), \
replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %whole = f32[32,128]{1,0:T(8,128)} all-gather-done(%start)
  %send = (f32[8,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}, u32[]{:S(2)}) \
collective-permute-start(%w), source_target_pairs={{0,1},{1,0}}
  ROOT %other = f32[8,128]{1,0:T(8,128)} collective-permute-done(%send)
}
""")
    tile = 8 * 128 * 4
    assert result.collectives == {"all-gather": 3 * tile, "collective-permute": tile}
    assert [op.name for op in result.operations] == ["start", "send"]
    assert result.not_estimated == ()
