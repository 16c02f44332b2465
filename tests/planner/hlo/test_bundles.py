"""Bundles written as libtpu prints them; how often each runs is known."""

import pytest

from siglip2_jax.planner.hlo.bundles import kernel_cycles

TEXT = """= control target key start
LH: loop header
LB: loop body
= control target key end

     0   :  { %s30_s9 = smov 0 /* copy for cssa */  ;;  %s90_s0 = inlined_call_operand.vmem [] }
   0x1 LB: > { %s14_s10 = sadd.s32 4294967295, %s25_s9 /* iteration index, stage = 1 */  ;;  \
%s25_s9 = sphi %s30_s9, %s12_s9 /* phi copy */ } /* Start region 79 */
   0x2   : > { %126 = sbr.rel (%p123_p2) target = $region28  ;;  \
%41502 = sst [smem:[#allocation17_spill]] %s25_s9 }
   0x3   :  {}
   0x4   : > { %700 = shalt.err (!%p695_p9) /* BoundsCheck 0
window_bounds: (32, 4)
 */  ;;  %s29_s21 = smov START /* copy for cssa */ }
   0x5 LB: >> { %s28_s21 = sphi %s29_s21, %s40_s21 /* phi copy */ }
   0x6   : >> { %s169_s23 = sadd.s32 STEP, %s28_s21 /* copy for cssa */ }
   0x7   : >> { %p35_p4 = scmp.ge.s32.totalorder %s169_s23, STOP /* loop exit test */ }
   0x8   : > { %894 = vst [vmem:[%s2717_s26 + $0x48] sm:$0xff] (%p35_p4), %v1 }
   0x9   : >> { %168 = sbr.rel (!%p35_p4) target = $region68 }
   0xa   : >> { %169 = vst [vmem:[%s2717_s26] sm:$0xff] %v1 }
   0xb   :  {}
   0xc   :  {}
   0xd   : >> { %170 = vst [vmem:[%s2717_s26] sm:$0xff] %v1 }
   0xe   : > { %171 = vst [vmem:[%s2717_s26] sm:$0xff] %v1 }
   0xf PF: > { %s26_s9 = sld [smem:[#allocation17_spill]]  ;;  %s12_s9 = sadd.s32 1, %s26_s9 }
  0x10   : > { %p9_p5 = scmp.ge.s32.totalorder %s12_s9, 18 /* loop exit test */ }
  0x11   :  { %11 = sbr.rel (!%p9_p5) target = $region79 }
  0x12   :  {}
  0x13   :  {}
  0x14   :  {}
  0x15   :  {}
  0x16   :  { %12 = vsyncpa [#allocation3], 1 }
"""


@pytest.mark.parametrize(
    ("start", "step", "stop", "runs"), [(0, 1, 7, 7), (3, 1, 10, 7), (0, 2, 7, 4), (9, 1, 3, 0)]
)
def test_loops_multiply(start, step, stop, runs):
    """The inner loop ends with the four bundles after its branch, not where lines are indented."""
    text = TEXT.replace("START", str(start)).replace("STEP", str(step)).replace("STOP", str(stop))
    programs = 18 - 2
    assert kernel_cycles(text) == 2 + programs * (4 + 9 * runs + 8)


def test_a_counter_that_is_spilled_before_the_test():
    text = TEXT.replace("START", "0").replace("STEP", "1").replace("STOP", "7")
    test = "%s12_s9, 18 /* loop exit test */"
    spilled = text.replace(test, "%s31_s9, 18 /* loop exit test */").replace(
        "%s12_s9 = sadd.s32 1, %s26_s9",
        "%s12_s9 = sadd.s32 1, %s26_s9  ;;  %7 = sst [smem:[#allocation18_spill]] %s12_s9  ;;  "
        "%s31_s9 = sld [smem:[#allocation18_spill]]",
    )
    assert spilled != text and kernel_cycles(spilled) == kernel_cycles(text)


@pytest.mark.parametrize(
    ("start", "stop"), [("0", "%s77_s3"), ("(!%p1_p1), 3", "7"), ("%s77_s3", "7")]
)
def test_a_bound_that_is_no_constant(start, stop):
    text = TEXT.replace("START", start).replace("STEP", "1").replace("STOP", stop)
    assert kernel_cycles(text) is None


def test_no_loop():
    assert kernel_cycles("     0   :  { %s1 = smov 0 }\n   0x1   :  {}\n") == 2


def test_other_texts_are_refused():
    with pytest.raises(ValueError, match="holds no TPU bundles"):
        kernel_cycles("HloModule jit_f\n")
