"""Kernels in programs written by hand: what they say of themselves, and what is counted."""

import pytest
from planner.hlo.by_hand import LOOPS, analysis

from siglip2_jax.planner.hlo.program import AMOUNTS, merged, top

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
