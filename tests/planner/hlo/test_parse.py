import pytest

from siglip2_jax.planner.hlo.parse import shapes


@pytest.mark.parametrize(
    ("text", "padded", "plain", "memory"),
    [
        ("f32[]", 4, 4, 0),
        ("f32[]{:T(128)S(6)}", 4, 4, 6),
        ("bf16[256,512]{1,0:T(8,128)(2,1)}", 262_144, 262_144, 0),
        ("bf16[256,512]{1,0:T(8,128)(2,1)S(1)}", 262_144, 262_144, 1),
        ("f32[3,10,64]{2,1,0:T(8,128)}", 3 * 16 * 128 * 4, 7680, 0),
        ("f32[3,10,64]{1,2,0:T(8,128)}", 3 * 64 * 128 * 4, 7680, 0),
        ("s32[1000]{0:T(1024)}", 4096, 4000, 0),
        ("pred[7]", 7, 7, 0),
        ("s4[7]", 4, 4, 0),
        ("f8e4m3fn[7]", 7, 7, 0),
        ("token[]", 0, 0, 0),
    ],
)
def test_shapes(text, padded, plain, memory):
    (shape,) = shapes(text)
    assert (shape.padded_bytes, shape.bytes, shape.memory) == (padded, plain, memory)


def test_tuples_are_flattened():
    read = shapes("((f32[2]{0}), /*index=1*/bf16[3,4]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)})")
    assert [shape.dims for shape in read] == [(2,), (3, 4), ()]
