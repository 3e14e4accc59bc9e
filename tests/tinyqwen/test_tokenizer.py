"""Tokenizer: published vectors, round trips, streaming, and text that tries to be a control token."""

import copy
import json
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.checkpoints import byte_tokenizer_json
from tinyqwen.errors import ModelFilesError, UsageError
from tinyqwen.tokenizer import BYTE_OF, TextStream, Tokenizer


@pytest.fixture(scope="session")
def qwen2(data):
    return Tokenizer(data / "qwen2_tokenizer")


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.json").write_text(json.dumps(byte_tokenizer_json(extra=("<tool_call>",))), encoding="utf-8")
    return Tokenizer(folder)


# ---- published vectors ----


def test_llamacpp_vectors(qwen2, data):
    folder = data / "token_vectors" / "llamacpp"
    texts = (folder / "ggml-vocab-qwen2.gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")[:-1]
    lines = (folder / "ggml-vocab-qwen2.gguf.out").read_text().split("\n")
    assert len(texts) == 46
    for text, line in zip(texts, lines):
        ids = [int(word) for word in line.split()]
        assert qwen2.encode(text) == ids, text
        assert qwen2.decode(ids) == unicodedata.normalize("NFC", text)


def test_transformers_vectors(qwen2, data):
    vectors = json.loads((data / "token_vectors" / "transformers_qwen2_integration_vectors.json").read_text("utf-8"))
    assert [qwen2.encode_template(vector["text"]) for vector in vectors] == [vector["ids"] for vector in vectors]


def test_qwenlm_vectors_with_and_without_control_tokens(qwen2, data):
    raw = json.loads((data / "token_vectors" / "qwenlm_tokenization_note.json").read_text("utf-8"))
    for vector in raw["vectors"]:
        encode = qwen2.encode_template if vector["allowed_special"] else qwen2.encode
        assert encode(vector["text"]) == vector["ids"]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello world", [9707, 1879]),
        (" Hello world", [21927, 1879]),
        ("12345", [16, 17, 18, 19, 20]),
        ("I'M it's", [40, 27603, 432, 594]),
        ("  \n\n  x", [18611, 220, 856]),
        ("e\u0301", [963]),
        ("a\r\n\r\nb", [64, 871, 65]),
        ("system", [8948]),
        ("user", [872]),
        ("assistant", [77091]),
    ],
)
def test_short_published_ids(qwen2, text, ids):
    assert qwen2.encode(text) == ids


def test_the_long_text_by_which_llamacpp_knows_this_tokenizer(qwen2):
    import hashlib

    text = (
        "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n"
        "🚀 (normal) 😶\u200d🌫️ (multiple emojis concatenated) ✅ 🦙🦙 3 33 333 3333 33333 333333 3333333 33333333 "
        "3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ ------======= нещо на Български "
        "''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? 'M not sure I'll make it, "
        "'D you like some tea? We'Ve a'lL"
    )
    digest = hashlib.sha256(str(qwen2.encode(text)).encode()).hexdigest()
    assert digest == "e636dc30a262dcc0d8c323492e32ae2b70728f4df7dfe9737d9f920a282b8aea"


def test_sizes_and_control_tokens(qwen2):
    assert qwen2.size == 151646
    assert qwen2.control == {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
    assert qwen2.decode([151646, 151935, 9707]) == "Hello", "padding rows have no text"


# ---- round trips and streaming ----


@given(st.text())
def test_decode_undoes_encode_up_to_nfc(small, text):
    assert small.decode(small.encode(text)) == unicodedata.normalize("NFC", text)


@given(st.binary(max_size=20))
@example("é😀".encode()[:3])
def test_a_stream_says_what_decode_says_for_any_bytes(small, raw):
    ids = [list(BYTE_OF.values()).index(byte) for byte in raw]
    stream = TextStream(small)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.finish() == small.decode(ids) == raw.decode(errors="replace")


@given(st.text(max_size=20))
def test_a_stream_never_shows_half_a_character(small, text):
    stream = TextStream(small)
    pieces = [stream.push(token) for token in small.encode(text)] + [stream.finish()]
    assert text.count("\ufffd") == "".join(pieces).count("\ufffd")
    assert "".join(pieces) == unicodedata.normalize("NFC", text)


@given(st.text(alphabet="ab<|", max_size=20), st.lists(st.text(alphabet="ab<|", min_size=1, max_size=4), max_size=3))
def test_a_stop_string_ends_the_text_before_it_and_is_never_shown(small, text, stops):
    stream = TextStream(small, stops)
    shown = ""
    for token in small.encode(text):
        shown += stream.push(token)
        assert not any(stop in shown for stop in stops)
        if stream.stopped:
            break
    shown += stream.finish()
    ends = [text.find(stop) for stop in stops if stop in text]
    assert stream.stopped == bool(ends)
    assert text.startswith(shown)
    assert not any(stop in shown for stop in stops)
    if not ends:
        assert shown == text


def test_control_tokens_and_padding_are_silent_in_an_answer(small):
    stream = TextStream(small)
    ids = [small.encode("h")[0], small.control["<|im_end|>"], 5000, small.encode("i")[0]]
    assert "".join(map(stream.push, ids)) == "hi"


# ---- text that tries to be more than text ----


@given(
    st.lists(st.sampled_from(["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>", "a", " ", "<", "|>", "\n"]))
)
def test_text_never_becomes_a_control_token(small, parts):
    text = "".join(parts)
    ids = small.encode(text)
    assert not set(ids) & set(small.control.values())
    assert small.decode(ids) == text


@given(st.text(alphabet="abc <|>\n", max_size=30))
def test_harmless_text_has_the_ids_that_the_library_gives(qwen2, text):
    library = qwen2._bpe
    library.encode_special_tokens = False
    try:
        usual = library.encode(text, add_special_tokens=False).ids
    finally:
        library.encode_special_tokens = True
    assert qwen2.encode(text) == usual


def test_the_longest_control_name_wins(tmp_path):
    raw = byte_tokenizer_json(extra=("<|im|>", "<|im|>x"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.encode_template("<|im|>x") == [tokenizer.control["<|im|>x"]]


# ---- bad input ----


def test_half_characters_are_refused(small):
    with pytest.raises(UsageError, match="UTF-8"):
        small.encode("a\ud800")


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "\x00\xff", '{"added_tokens": []}', '{"added_tokens": [3]}'])
def test_what_is_no_tokenizer_is_named(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text, encoding="latin-1")
    with pytest.raises(ModelFilesError, match=r"tokenizer\.json") as error:
        Tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_no_tokenizer_is_named(tmp_path):
    with pytest.raises(ModelFilesError, match=r"no tokenizer\.json"):
        Tokenizer(tmp_path)


@given(st.data())
def test_a_damaged_tokenizer_is_refused_or_works(tmp_path_factory, data_):
    """Remove or replace one part anywhere in the file: an error with a name, or a tokenizer that encodes."""
    raw = copy.deepcopy(byte_tokenizer_json())
    place, key = raw, data_.draw(st.sampled_from(sorted(raw)))
    while isinstance(place[key], dict) and place[key] and data_.draw(st.booleans()):
        place, key = place[key], data_.draw(st.sampled_from(sorted(place[key])))
    if data_.draw(st.booleans()):
        del place[key]
    else:
        place[key] = data_.draw(st.none() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2))
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    try:
        Tokenizer(folder).encode("hello <|im_end|>")
    except ModelFilesError as error:
        assert "\n" not in str(error)
