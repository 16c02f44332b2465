"""Analysis of programs that tests write by hand, on a chip of round rates."""

import dataclasses

from siglip2_jax.planner.hlo.program import Analysis, analyse
from siglip2_jax.train.chips import V5E

HEADER = "HloModule test, is_scheduled=true, num_partitions=8\n\n"
CHIP = dataclasses.replace(V5E, clock_hz=1e9, flops=1e12, hbm_bandwidth=1e11)

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


def analysis(body: str, **options) -> Analysis:
    return analyse(HEADER + body, CHIP, **options)
