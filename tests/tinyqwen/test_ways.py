"""Ways to look far back: each changes what it names, and what config.json could not say is refused."""

import pytest

from tests.helpers import dense_config
from tinyqwen.config import DualChunk, RopeScaling
from tinyqwen.errors import UsageError
from tinyqwen.ways import as_config

CONFIG = dense_config(max_position_embeddings=512)


def test_each_way_changes_what_it_names():
    assert as_config("plain", CONFIG) is CONFIG
    assert as_config("yarn=4", CONFIG).rope_scaling == RopeScaling(4, 512)
    assert as_config("dca=256,32", CONFIG).dual_chunk_attention_config == DualChunk(256, 32)
    assert as_config("dca=512,64,512", CONFIG).dual_chunk_attention_config == DualChunk(512, 64, 512)
    windows = as_config("window=9", CONFIG)
    assert [windows.window(layer) for layer in range(3)] == [9, 9, 9]
    both = as_config("yarn=2+window=9", CONFIG)
    assert (both.context, both.window(0)) == (1024, 9)


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("", "no way"), ("yarn", "no way"), ("yarn=x", "no way"), ("dca=512", "no way"), ("window=1.5", "no way"),
        ("ntk=2", "no way"), ("yarn=2+yarn=4", "no way"), ("plain+yarn=2", "no way"), ("yarn=0.5", "from 1 to"),
        ("yarn=nan", "from 1 to"), ("window=0", "window"), ("window=-3", "window"),
        ("dca=1024,64", "distances up to 512 only"), ("dca=256,32+yarn=2", "both stretch"),
        ("dca=256,32+window=9", "which?"),
    ],
)  # fmt: skip
def test_what_is_no_way_is_refused_in_one_line(way, words):
    with pytest.raises(UsageError) as found:
        as_config(way, CONFIG)
    text = str(found.value)
    assert words in text and "\n" not in text and text.lstrip("'").startswith(way), text
