"""Programs written by hand: what they cost is known line by line."""

import pytest
from planner.hlo.by_hand import CHIP, HEADER, LOOPS, analysis

from siglip2_jax.planner.hlo.program import analyse


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
