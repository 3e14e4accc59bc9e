"""A conversation: the cache follows the messages, whatever is done to them."""

import dataclasses
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoints import write_tiny_checkpoint
from tinyqwen.config import SLIDING, DualChunk
from tinyqwen.conversation import Conversation
from tinyqwen.errors import UsageError
from tinyqwen.runtime import load


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_tiny_checkpoint(folder)
    return load(folder)  # without a template of its own: rendered in this process, as ChatML


def answer(conversation, **settings):
    running, reused = conversation.answer(seed=1, max_new_tokens=6, **settings)
    for _ in conversation.runtime.generate([running]):
        pass
    text = conversation.runtime.tokenizer.decode(running.new_ids)
    conversation.messages.append({"role": "assistant", "content": text})
    return text, reused


def say(conversation, text):
    conversation.messages.append({"role": "user", "content": text})


turns = st.lists(
    st.sampled_from(["say a", "say hello", "undo", "edit", "clear", "system", "interrupt"]), min_size=1, max_size=8
)


@pytest.fixture(scope="module", params=["full", "window", "chunks"])
def any_runtime(runtime, request):
    """The same model, also where it forgets all but the last 50 tokens of its texts or cuts them in chunks."""
    config = runtime.config
    changes = {
        "full": {},
        "window": {"sliding_window": 50, "layer_types": (SLIDING,) * config.num_hidden_layers},
        "chunks": {"dual_chunk_attention_config": DualChunk(64, 16)},
    }[request.param]
    checkpoint = dataclasses.replace(runtime.checkpoint, config=dataclasses.replace(config, **changes))
    return dataclasses.replace(runtime, checkpoint=checkpoint, kv_format="f32")


def test_a_window_that_has_moved_on_is_read_again(any_runtime):
    """Taking back three long turns: what came before them is no longer in the ring. (One, it could have forgotten.)"""
    conversation = Conversation(any_runtime)
    say(conversation, "short")
    answer(conversation)
    for _ in range(3):
        say(conversation, "something far longer than the window, so that it moves on past all that came before it")
        answer(conversation)
    for _ in range(3):
        conversation.undo()
    say(conversation, "other")
    text, reused = answer(conversation)
    fresh = Conversation(any_runtime)
    fresh.messages = conversation.messages[:-1]
    assert answer(fresh)[0] == text
    assert (reused == 0) == (any_runtime.config.sliding_window is not None)


@given(turns)
def test_a_reused_cache_answers_as_a_fresh_one_after_any_history(any_runtime, history):
    runtime = any_runtime
    conversation = Conversation(runtime)
    for turn in history:
        if turn.startswith("say"):
            say(conversation, turn)
            answer(conversation)
        elif turn == "undo":
            conversation.undo()
        elif turn == "edit" and conversation.messages:
            conversation.messages[-1]["content"] += "!"
        elif turn == "clear":
            conversation.messages.clear()
        elif turn == "system":
            conversation.messages[:0] = [{"role": "system", "content": "S"}]
        elif turn == "interrupt":
            say(conversation, "stopped half-way")
            running, _ = conversation.answer(seed=1)
            list(itertools.islice(runtime.generate([running]), 3))
    say(conversation, "and now?")
    fresh = Conversation(runtime)
    fresh.messages = [dict(message) for message in conversation.messages]
    assert answer(conversation)[0] == answer(fresh)[0]


def test_a_second_turn_reads_only_what_is_new(runtime):
    conversation = Conversation(runtime, system="S")
    say(conversation, "one")
    _, reused = answer(conversation)
    assert reused == 0
    before = conversation._cache.length
    say(conversation, "two")
    running, reused = conversation.answer(max_new_tokens=1)
    # All of the first turn that was read; the answer's last token was never fed back.
    assert before - 8 <= reused <= before
    assert len(running.pending) < 60


def test_saved_and_loaded_messages_are_the_same(runtime, tmp_path):
    conversation = Conversation(runtime, system="é😀")
    say(conversation, "<|im_end|>")
    conversation.save(tmp_path / "chat.json")
    other = Conversation(runtime)
    other.load(tmp_path / "chat.json")
    assert other.messages == conversation.messages
    assert [path.name for path in tmp_path.iterdir()] == ["chat.json"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"role": "user"}]', '[{"role": 1, "content": "x"}]', "\xff"])
def test_a_file_that_is_no_conversation_changes_nothing(runtime, tmp_path, text):
    path = tmp_path / "chat.json"
    path.write_text(text, encoding="latin-1")
    conversation = Conversation(runtime, system="S")
    before = json.dumps(conversation.messages)
    with pytest.raises(UsageError, match=r"chat\.json"):
        conversation.load(path)
    assert json.dumps(conversation.messages) == before


def test_undo_takes_back_a_question_with_its_answer(runtime):
    conversation = Conversation(runtime, system="S")
    assert not conversation.undo()
    say(conversation, "one")
    conversation.messages.append({"role": "assistant", "content": "1"})
    say(conversation, "two")
    assert conversation.undo() and len(conversation.messages) == 3
    assert conversation.undo() and [message["role"] for message in conversation.messages] == ["system"]
