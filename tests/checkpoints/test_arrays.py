"""Reading arrays of trees whose files are damaged, one bit after the other."""

import numpy as np
import pytest
from etils import epath
from orbax.checkpoint import v1 as ocp

from siglip2_jax.checkpoints.arrays import DamagedTree, is_of_the_store, read_array


def test_no_changed_bit_is_taken_for_an_unreachable_store(tmp_path):
    """TensorStore reports some damage without a status."""
    values = np.arange(30, dtype=np.float32)
    ocp.save(tmp_path / "saved", {"a": values})
    tree, causes = epath.Path(tmp_path / "saved" / "state"), []
    files = [tree / "manifest.ocdbt", *tree.glob("d/*")]
    assert len(files) > 1
    for file in files:
        content = file.read_bytes()
        for place in range(min(len(content), 250)):
            changed = bytearray(content)
            changed[place] ^= 1 << place % 8
            file.write_bytes(bytes(changed))
            try:
                read_array(tree, "a")
            except DamagedTree as damage:
                causes.append(str(damage.__cause__))
                assert not is_of_the_store(damage.__cause__)
        file.write_bytes(content)
    np.testing.assert_array_equal(read_array(tree, "a"), values)
    without = [cause for cause in causes if not cause.partition(":")[0].isupper()]
    assert len(causes) > 50 and without


@pytest.mark.parametrize(
    ("text", "store"),
    [
        ('PERMISSION_DENIED: Error writing "/a/b"', True),
        ("UNAVAILABLE: it does not answer", True),
        ("DATA_LOSS: Checksum failed", False),
        ('Error opening "auto" driver: Data corruption detected', False),
        ("UNKNOWN: Gloo AllGather failed: Connection closed by peer", False),
    ],
)
def test_whose_fault_an_error_is(text, store):
    assert is_of_the_store(ValueError(text)) is store
    assert not is_of_the_store(RuntimeError(text))
