"""Programs written by hand: what they cost is known line by line."""

import dataclasses

import pytest

from siglip2_jax.planner.hlo.program import AMOUNTS, Analysis, analyse, merged, top
from siglip2_jax.train.chips import V5E

HEADER = "HloModule test, is_scheduled=true, num_partitions=8\n\n"


CHIP = dataclasses.replace(V5E, clock_hz=1e9, flops=1e12, hbm_bandwidth=1e11)


def analysis(body: str, **options) -> Analysis:
    return analyse(HEADER + body, CHIP, **options)


def test_a_matrix_product_and_where_it_comes_from():
    text = """HloModule test, is_scheduled=true

FileNames
1 "/lib/python3/site-packages/flax/linear.py"
2 "model.py"

FunctionNames
1 "call"

FileLocations
1 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=1 end_column=2}
2 {file_name_id=2 function_name_id=1 line=42 end_line=42 column=1 end_column=2}

StackFrames
1 {file_location_id=2 parent_frame_id=1}
2 {file_location_id=1 parent_frame_id=2}

ENTRY %main (x: f32[8,16], w: f32[16,32]) -> f32[8,32] {
  %x = f32[8,16]{1,0} parameter(0)
  %w = f32[16,32]{1,0:S(1)} parameter(1)
  ROOT %y = f32[8,32]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}, \
metadata={op_name="jit(f)/dot" stack_frame_id=2}, backend_config={"estimated_cycles":"500"}
}
"""
    result = analyse(text, CHIP)
    (op,) = result.operations
    assert (op.name, op.opcode, op.op_name, op.source) == ("y", "dot", "jit(f)/dot", "model.py:42")
    assert op.flops == result.flops == 2 * 8 * 16 * 32
    assert op.hbm_bytes == 4 * (8 * 16 + 8 * 32)  # w lies in VMEM
    assert result.seconds == 500e-9


LOOPS = """%inner_body (p: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {
  %p = (s32[], f32[4,4]) parameter(0)
  %one = s32[] constant(1)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[4,4]{1,0} get-tuple-element(%p), index=1
  %next = s32[] add(%i, %one)
  %y = f32[4,4]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}, \
backend_config={"estimated_cycles":"7"}
  ROOT %t = (s32[], f32[4,4]) tuple(%next, %y)
}

%inner_condition (q: (s32[], f32[4,4])) -> pred[] {
  %q = (s32[], f32[4,4]) parameter(0)
  %bound = s32[] constant(9)
  %j = s32[] get-tuple-element(%q), index=0
  ROOT %less = pred[] compare(%j, %bound), direction=LT
}

%outer_body (r: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {
  %r = (s32[], f32[4,4]) parameter(0)
  %k = s32[] get-tuple-element(%r), index=0
  %z = f32[4,4]{1,0} get-tuple-element(%r), index=1
  %two = s32[] constant(2)
  %start = s32[] copy(%two)
  %state = (s32[], f32[4,4]) tuple(%start, %z)
  %inner = (s32[], f32[4,4]) while(%state), condition=%inner_condition, body=%inner_body
  %v = f32[4,4]{1,0} get-tuple-element(%inner), index=1
  ROOT %u = (s32[], f32[4,4]) tuple(%k, %v)
}

%outer_condition (s: (s32[], f32[4,4])) -> pred[] {
  %s = (s32[], f32[4,4]) parameter(0)
  ROOT %unknown = pred[] custom-call(%s), custom_call_target="Oracle"
}

ENTRY %main (a: f32[4,4]) -> f32[4,4] {
  %a = f32[4,4]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %first = (s32[], f32[4,4]) tuple(%zero, %a)
  %outer = (s32[], f32[4,4]) while(%first), condition=%outer_condition, body=%outer_body KNOWN
  ROOT %b = f32[4,4]{1,0} get-tuple-element(%outer), index=1
}
"""


def test_loops_multiply():
    known = ', backend_config={"known_trip_count":{"n":"5"}}'
    result = analysis(LOOPS.replace(" KNOWN", known))
    assert result.loops == ()
    (dot,) = (op for op in result.operations if op.opcode == "dot")
    assert dot.trips == 5 * (9 - 2)
    assert result.flops == 35 * 2 * 4**3
    assert dot.cycles == 35 * 7


def test_a_loop_of_unknown_length_counts_once_and_is_named():
    result = analysis(LOOPS.replace(" KNOWN", ""))
    assert result.loops == ("outer",)
    assert result.flops == 7 * 2 * 4**3


def test_only_the_most_expensive_branch_counts():
    result = analysis("""%cheap (p: f32[4,4]) -> f32[4,4] {
  %p = f32[4,4]{1,0} parameter(0)
  ROOT %c = f32[4,4]{1,0} copy(%p), backend_config={"estimated_cycles":"10"}
}

%dear (q: f32[4,4]) -> f32[4,4] {
  %q = f32[4,4]{1,0} parameter(0)
  ROOT %d = f32[4,4]{1,0} negate(%q), backend_config={"estimated_cycles":"30"}
}

ENTRY %main (i: s32[], a: f32[4,4]) -> f32[4,4] {
  %i = s32[] parameter(0)
  %a = f32[4,4]{1,0} parameter(1)
  ROOT %r = f32[4,4]{1,0} conditional(%i, %a, %a, %a), branch_computations={%cheap, %dear, %cheap}
}
""")
    assert [op.name for op in result.operations] == ["d"]


def test_fusions_count_what_they_touch():
    result = analysis("""%take (stack: f32[10,8,128], i: s32[]) -> f32[1,8,128] {
  %stack = f32[10,8,128]{2,1,0:T(8,128)} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %one = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%stack, %i, %zero, %zero)
  ROOT %twice = f32[1,8,128]{2,1,0:T(8,128)S(1)} add(%one, %one)
}

%put (stack.1: f32[10,8,128], new: f32[1,8,128], j: s32[]) -> f32[10,8,128] {
  %stack.1 = f32[10,8,128]{2,1,0:T(8,128)} parameter(0)
  %new = f32[1,8,128]{2,1,0:T(8,128)S(1)} parameter(1)
  %j = s32[]{:S(6)} parameter(2)
  %zero.1 = s32[] constant(0)
  %put.1 = f32[10,8,128]{2,1,0:T(8,128)} dynamic-update-slice(%stack.1, %new, %j, %zero.1, %zero.1)
  ROOT %same = f32[10,8,128]{2,1,0:T(8,128)} bitcast(%put.1)
}

%hand_on (big: f32[10,8,128], small: f32[8,128]) -> (f32[10,8,128], f32[8,128]) {
  %big = f32[10,8,128]{2,1,0:T(8,128)} parameter(0)
  %small = f32[8,128]{1,0:T(8,128)} parameter(1)
  %minus = f32[8,128]{1,0:T(8,128)} negate(%small)
  ROOT %both = (f32[10,8,128]{2,1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)}) tuple(%big, %minus)
}

ENTRY %main (s: f32[10,8,128], k: s32[], m: f32[8,128]) -> f32[10,8,128] {
  %s = f32[10,8,128]{2,1,0:T(8,128)} parameter(0)
  %k = s32[]{:S(6)} parameter(1)
  %m = f32[8,128]{1,0:T(8,128)} parameter(2)
  %taken = f32[1,8,128]{2,1,0:T(8,128)S(1)} fusion(%s, %k), kind=kLoop, calls=%take
  %stored = f32[10,8,128]{2,1,0:T(8,128)} fusion(%s, %taken, %k), kind=kLoop, calls=%put
  %handed = (f32[10,8,128]{2,1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)}) fusion(%stored, %m), \
kind=kLoop, calls=%hand_on
  %fetch = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%m)
  %fetched = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%fetch)
  %part = ((f32[10,8,128]{2,1,0:T(8,128)}), f32[2,8,128]{2,1,0:T(8,128)S(1)}, s32[]{:S(2)}) \
slice-start(%s), slice={[0:2], [0:8], [0:128]}
  %parted = f32[2,8,128]{2,1,0:T(8,128)S(1)} slice-done(%part)
  ROOT %out = f32[10,8,128]{2,1,0:T(8,128)} get-tuple-element(%handed), index=0
}
""")
    tile = 8 * 128 * 4
    assert {op.name: op.hbm_bytes for op in result.operations} == {
        "taken": tile,  # one of ten read, result in VMEM
        "stored": tile,  # one of ten written in place
        "handed": 2 * tile,  # read and write of the small one
        "fetch": tile,  # HBM to VMEM
        "part": 2 * tile,
    }


def test_a_product_counts_no_padding():
    # Two heads as a window of one dimension: each output meets one element of the input.
    result = analysis("""ENTRY %main (q: f32[2,8,4], k: f32[2,4,8]) -> f32[2,8,8] {
  %q = f32[2,8,4]{2,1,0} parameter(0)
  %k = f32[2,4,8]{2,1,0} parameter(1)
  ROOT %s = f32[2,8,8]{2,1,0} convolution(%q, %k), window={size=2 stride=1 lhs_dilate=2}, \
dim_labels=0bf_0io->0bf
}
""")
    assert result.flops == 2 * 2 * 8 * 4 * 8


def test_a_same_convolution():
    result = analysis("""ENTRY %main (x: f32[1,5,5,3], k: f32[3,3,3,7]) -> f32[1,5,5,7] {
  %x = f32[1,5,5,3]{3,2,1,0} parameter(0)
  %k = f32[3,3,3,7]{3,2,1,0} parameter(1)
  ROOT %y = f32[1,5,5,7]{3,2,1,0} convolution(%x, %k), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_01io->b01f
}
""")
    assert result.flops == 2 * (3 + 3 + 3 + 2 + 2) ** 2 * 3 * 7


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


KERNEL = """ENTRY %main (q: bf16[4,8,128], n: s32[4]) -> bf16[4,8,128] {
  %q = bf16[4,8,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %n = s32[4]{0:T(128)S(1)} parameter(1)
  %one = bf16[4,8,128]{2,1,0:T(8,128)(2,1)} custom-call(%q, %n), \
custom_call_target="tpu_custom_call", \
metadata={op_name="jit(f)/attend"}, backend_config={"custom_call_config":{"body":"TUz{v"ESTIMATE}, \
"used_scoped_memory_configs":[]}
  ROOT %two = bf16[4,8,128]{2,1,0:T(8,128)(2,1)} custom-call(%one, %n), \
custom_call_target="tpu_custom_call", \
metadata={op_name="jit(f)/attend"}, backend_config={"custom_call_config":{"body":"TUz{v"ESTIMATE}, \
"used_scoped_memory_configs":[]}
}
"""
ESTIMATE = ',"cost_estimate":{"flops":"4000000","transcendentals":"1","bytes_accessed":"2"}'
TRAFFIC = 2 * 4 * 8 * 128 * 2  # in and out; the lengths lie in VMEM


@pytest.mark.parametrize(
    ("said", "counted", "cycles", "timed_by"),
    [
        (ESTIMATE, 5000, 5000, "bundles"),
        (ESTIMATE, 700, 4000, "bundles"),  # 1,000 FLOPs a cycle
        ("", 3, TRAFFIC / 100, "bundles"),  # 100 bytes a cycle
        (ESTIMATE, None, 4000, "cost estimate"),
        ("", 700, 700, "bundles"),
        ("", None, None, None),
    ],
)
def test_kernels(said, counted, cycles, timed_by):
    asked = []

    def timer(kernels, chip):
        asked.extend(kernels)
        return (counted,) * len(kernels)

    result = analysis(KERNEL.replace("ESTIMATE", said), time_kernels=timer)
    (kernel,) = asked  # the same twice
    assert kernel.operands == (("bf16", (4, 8, 128)), ("s32", (4,)))
    assert kernel.results == (("bf16", (4, 8, 128)),)
    for op in result.operations:
        assert op.hbm_bytes == TRAFFIC and op.timed_by == timed_by
        assert op.cycles == (cycles if cycles is None else round(cycles))
        assert op.flops == (4_000_000 if said else 0)
    assert len(result.not_estimated) == (2 if cycles is None else 0)
    assert len(result.not_counted) == (0 if said else 2)
    (both,) = merged(result.operations)
    assert (both.name, both.trips, both.hbm_bytes) == ("one", 2, 2 * TRAFFIC)
    assert both.cycles == (cycles if cycles is None else 2 * round(cycles))


def test_a_kernel_in_a_loop_counts_as_often_as_it_runs():
    body = LOOPS.replace(
        """dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}, \
backend_config={"estimated_cycles":"7"}""",
        """custom-call(%x, %x), custom_call_target="tpu_custom_call", \
backend_config={"custom_call_config":{"cost_estimate":{"flops":"9"}}}""",
    ).replace(" KNOWN", ', backend_config={"known_trip_count":{"n":"5"}}')
    result = analysis(body, time_kernels=lambda kernels, chip: (100,))
    (op,) = (op for op in result.operations if op.kernel)
    assert (op.trips, op.cycles, op.flops) == (35, 3500, 35 * 9)
    assert op.to_json() == {
        "name": "y",
        "opcode": "custom-call",
        "op_name": "",
        "source": "",
        "trips": 35,
        "flops": 315,
        "hbm_bytes": 35 * 3 * 64,
        "collectives": {},
        "cycles": 3500,
        "timed_by": "bundles",
        "asynchronous": False,
    }


def test_top_leaves_out_what_has_nothing():
    result = analysis(KERNEL.replace("ESTIMATE", ""))
    assert [op.name for op in top(result.operations, AMOUNTS["hbm"], 1)] == ["one"]
    assert top(result.operations, AMOUNTS["collectives"]) == []


@pytest.mark.parametrize(
    ("inner", "outer", "found"),
    [
        ("/env/site-packages/siglip2_jax/models/layers.py", "train.py", "models/layers.py:7"),
        ("/env/site-packages/jax/lax.py", "/home/me/siglip2_jax/step.py", "siglip2_jax/step.py:42"),
        ("/env/dist-packages/flax/nnx.py", "train.py", "train.py:42"),
        ("/home/me/loss.py", "/home/me/siglip2_jax/step.py", "siglip2_jax/step.py:42"),
        ("/usr/lib/python3.11/functools.py", "/env/site-packages/jax/api.py", ""),
    ],
)
def test_lines_are_of_this_package_before_any_other(inner, outer, found):
    text = f"""HloModule test, is_scheduled=true

FileNames
1 "{inner}"
2 "{outer}"

FunctionNames
1 "call"

FileLocations
1 {{file_name_id=1 function_name_id=1 line=7 end_line=7 column=1 end_column=2}}
2 {{file_name_id=2 function_name_id=1 line=42 end_line=42 column=1 end_column=2}}

StackFrames
1 {{file_location_id=2 parent_frame_id=1}}
2 {{file_location_id=1 parent_frame_id=2}}

ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0}} parameter(0)
  ROOT %y = f32[8]{{0}} negate(%x), metadata={{op_name="f" stack_frame_id=2}}
}}
"""
    (op,) = analyse(text, CHIP).operations
    assert op.source.endswith(found) and bool(op.source) == bool(found)


def test_other_texts_are_refused():
    with pytest.raises(ValueError, match="not of a scheduled program"):
        analyse("HloModule jit_f\n", CHIP)
    with pytest.raises(ValueError, match="holds no HLO program"):
        analyse(HEADER, CHIP)
