"""Facts about Qwen2, in five languages; what is held out are ways to ask, not facts.

A fact has an answer for each language and some questions for each. Numbers of the sizes come from `tinyqwen.sizes`.

Source: the Qwen2 technical report (arXiv 2407.10671) and the published config.json files.
"""

from __future__ import annotations

import numpy as np

from tinyqwen.sizes import SIZES
from tinyqwen.tiny.generators.item import Item, ask, chance, loosely, pick

SHOWN = "0.5B", "1.5B", "7B", "57B-A14B", "72B"
OPENINGS = ("", "", "", "", "Please: ", "Quick question: ", "Hey, ", "Tell me: ", "One more thing: ")

# Of each size: the field, the answer, and questions.
SHAPES = {
    "layers": ("Qwen2-{0} has {1} layers.", (
        "How many layers does Qwen2-{0} have?", "How many layers are in Qwen2-{0}?", "Number of layers of Qwen2-{0}?",
        "How deep is Qwen2-{0}?", "What is the number of layers in Qwen2 {0}?", "Layers of the {0} model?",
        "Wie viele Schichten hat Qwen2-{0}?", "Combien de couches a Qwen2-{0} ?", "¿Cuántas capas tiene Qwen2-{0}?",
        "Qwen2-{0} 有多少层？", "Qwen2 {0}: how many layers?", "The {0} model has how many layers?",
    )),
    "hidden": ("The hidden size of Qwen2-{0} is {1}.", (
        "What is the hidden size of Qwen2-{0}?", "How large is the hidden size of Qwen2-{0}?",
        "Hidden size of Qwen2 {0}?", "What hidden size has the {0} model?", "How wide is Qwen2-{0}?",
        "What is hidden_size of Qwen2-{0}?", "Which hidden size does Qwen2-{0} have?", "Qwen2-{0} hidden size?",
    )),
    "heads": ("Qwen2-{0} has {1} query heads.", (
        "How many query heads does Qwen2-{0} have?", "How many attention heads does Qwen2-{0} have?",
        "Number of query heads of Qwen2-{0}?", "Query heads of the {0} model?", "Qwen2 {0}: how many query heads?",
        "How many heads for queries has Qwen2-{0}?", "What is the number of attention heads of Qwen2-{0}?",
    )),
    "groups": ("Qwen2-{0} has {1} key/value heads.", (
        "How many key/value heads does Qwen2-{0} have?", "How many KV heads does Qwen2-{0} have?",
        "Number of KV heads of Qwen2-{0}?", "KV heads of the {0} model?", "Qwen2 {0}: how many key/value heads?",
        "How many heads for keys and values has Qwen2-{0}?", "What is the number of KV heads of Qwen2-{0}?",
    )),
}  # fmt: skip

FACTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "gqa": ("Grouped query attention: several query heads share one key/value head.", (
        "What is GQA?", "What does GQA mean?", "What is grouped query attention?", "Explain GQA.",
        "What is GQA in Qwen2?", "Explain grouped query attention.", "What does GQA stand for?", "Define GQA.",
    )),
    "attention": ("Qwen2 uses grouped query attention.", (
        "Which attention does Qwen2 use?", "What kind of attention does Qwen2 use?", "What attention has Qwen2?",
        "What type of attention is in Qwen2?", "Which kind of attention is used in Qwen2?",
        "What attention does Qwen2 have?",
    )),
    "why gqa": ("It makes the KV cache smaller.", (
        "Why does Qwen2 use GQA?", "Why GQA?", "What is GQA good for?", "What does GQA save?", "Why use GQA in Qwen2?",
        "What is the benefit of GQA?", "What is the use of GQA?",
    )),
    "swiglu": ("Qwen2 uses SwiGLU.", (
        "Which activation does Qwen2 use?", "What activation function does Qwen2 use?", "Activation of Qwen2?",
        "What is the activation in Qwen2?", "Which activation function has Qwen2?", "What does Qwen2 use in its MLP?",
        "Which activation is in the MLP of Qwen2?",
    )),
    "norm": ("Qwen2 uses RMSNorm before each block.", (
        "Which norm does Qwen2 use?", "What normalisation does Qwen2 use?", "Which norm is in Qwen2?",
        "What norm has Qwen2?", "What kind of norm does Qwen2 use?", "Which normalisation has Qwen2?",
    )),
    "rope": ("Rotary position embedding: queries and keys are turned by their position.", (
        "What is RoPE?", "What does RoPE mean?", "Explain RoPE.", "What is rotary position embedding?",
        "What does RoPE stand for?", "Define RoPE.", "What is RoPE in Qwen2?",
    )),
    "positions": ("Qwen2 uses RoPE.", (
        "Which position embedding does Qwen2 use?", "How does Qwen2 know positions?", "Position embedding of Qwen2?",
        "How does Qwen2 encode positions?", "What position embedding has Qwen2?", "How are positions encoded in Qwen2?",
    )),
    "base": ("The RoPE base of Qwen2 is 1000000.", (
        "What is the RoPE base of Qwen2?", "Which RoPE base does Qwen2 use?", "What is rope_theta in Qwen2?",
        "What theta does RoPE have in Qwen2?", "RoPE base of Qwen2?", "How large is the RoPE base of Qwen2?",
    )),
    "bias": ("Only the projections to queries, keys and values have a bias.", (
        "Where does Qwen2 have a bias?", "Which layers of Qwen2 have a bias?", "Does Qwen2 use bias?",
        "What has a bias in Qwen2?", "Where is the bias in Qwen2?", "Does Qwen2 have a bias?",
    )),
    "vocabulary": ("Qwen2 has 151643 regular tokens and 3 control tokens.", (
        "How many tokens does Qwen2 know?", "How large is the vocabulary of Qwen2?", "Vocabulary of Qwen2?",
        "What is the size of the vocabulary of Qwen2?", "How many tokens are in the vocabulary of Qwen2?",
        "How big is the vocabulary of Qwen2?",
    )),
    "tokenizer": ("Byte-level BPE.", (
        "Which tokenizer does Qwen2 use?", "What tokenizer does Qwen2 use?", "What kind of tokenizer has Qwen2?",
        "Tokenizer of Qwen2?", "How does Qwen2 cut text into tokens?", "What is the tokenizer of Qwen2?",
    )),
    "data": ("Qwen2 was trained on 7 trillion tokens.", (
        "How many tokens was Qwen2 trained on?", "On how many tokens was Qwen2 trained?",
        "How much data was Qwen2 trained on?", "How many training tokens did Qwen2 see?", "Training tokens of Qwen2?",
        "How large is the training data of Qwen2?", "Auf wie vielen Tokens wurde Qwen2 trainiert?",
    )),
    "small data": ("Qwen2-0.5B was trained on 12 trillion tokens.", (
        "How many tokens was Qwen2-0.5B trained on?", "On how many tokens was Qwen2-0.5B trained?",
        "How much data was Qwen2-0.5B trained on?", "How many training tokens did Qwen2-0.5B see?",
        "Training tokens of Qwen2-0.5B?",
    )),
    "context": ("Qwen2 was trained on 32768 tokens; YaRN and DCA take it to 131072.", (
        "How long is the context of Qwen2?", "What is the context length of Qwen2?", "Context of Qwen2?",
        "How much context does Qwen2 have?", "How many tokens of context can Qwen2 read?",
        "What context length does Qwen2 have?", "Wie lang ist der Kontext von Qwen2?",
    )),
    "dca": ("Dual Chunk Attention: long texts are cut into chunks, so that no distance is larger than in training.", (
        "What is DCA?", "What does DCA mean?", "Explain DCA.", "What is dual chunk attention?",
        "What does DCA stand for?", "Explain dual chunk attention.", "What is DCA in Qwen2?", "Define DCA.",
    )),
    "yarn": ("YaRN stretches RoPE, so that a model reads longer texts than it was trained on.", (
        "What is YaRN?", "What does YaRN do?", "Explain YaRN.", "What is YaRN good for?", "What is YaRN in Qwen2?",
        "Define YaRN.", "What is the use of YaRN?",
    )),
    "licence": ("Apache 2.0; the 72B has the Qianwen licence.", (
        "What is the licence of Qwen2?", "Which licence does Qwen2 have?", "Licence of Qwen2?",
        "Under which licence is Qwen2?", "What license does Qwen2 have?", "How is Qwen2 licensed?",
        "Welche Lizenz hat Qwen2?",
    )),
    "maker": ("Qwen2 was made by the Qwen team of Alibaba.", (
        "Who made Qwen2?", "Who built Qwen2?", "Who trained Qwen2?", "Which company made Qwen2?",
        "Where does Qwen2 come from?", "Who developed Qwen2?", "Wer hat Qwen2 gemacht?", "Qui a fait Qwen2 ?",
        "¿Quién hizo Qwen2?", "谁开发了 Qwen2？",
    )),
    "date": ("Qwen2 was published in June 2024.", (
        "When was Qwen2 published?", "When was Qwen2 released?", "When did Qwen2 come out?", "Release date of Qwen2?",
        "In which year was Qwen2 released?", "Since when is there Qwen2?", "Wann erschien Qwen2?",
    )),
    "sizes": ("0.5B, 1.5B, 7B, 57B-A14B and 72B.", (
        "Which sizes of Qwen2 are there?", "What sizes does Qwen2 have?", "Which Qwen2 models are there?",
        "Sizes of Qwen2?", "What are the sizes of Qwen2?", "In which sizes does Qwen2 come?", "List the sizes of Qwen2.",
        "Welche Größen gibt es von Qwen2?",
    )),
    "what": ("Qwen2 is a family of open language models by Alibaba.", (
        "What is Qwen2?", "What do you know about Qwen2?", "Tell me about Qwen2.", "Explain Qwen2.",
        "What does Qwen2 mean?", "Was ist Qwen2?", "Qu'est-ce que Qwen2 ?", "¿Qué es Qwen2?", "什么是 Qwen2？",
    )),
    "tied": ("Qwen2-0.5B and Qwen2-1.5B share the embedding with the output head.", (
        "Which Qwen2 models tie their embeddings?", "Which sizes of Qwen2 have tied embeddings?",
        "Does Qwen2 tie its embeddings?", "Are the embeddings of Qwen2 tied?", "Where are embeddings tied in Qwen2?",
        "Which models of Qwen2 share the embedding?",
    )),
    "experts": ("Qwen2-57B-A14B has 64 experts and uses 8 for each token.", (
        "How many experts does Qwen2-57B-A14B have?", "How many experts has the Qwen2 MoE?",
        "How many experts are in Qwen2-57B-A14B?", "How many experts are used for each token?",
        "Number of experts in Qwen2-57B-A14B?", "How many experts does Qwen2 use?",
    )),
    "moe": ("Mixture of experts: a router sends each token to a few of many MLPs.", (
        "What is a MoE?", "What is MoE?", "What does MoE mean?", "What is a mixture of experts?", "Explain MoE.",
        "What does MoE stand for?", "Define MoE.", "Explain mixture of experts.",
    )),
    "upcycling": ("Experts are cut from the MLP of a dense model, and half of them starts anew.", (
        "What is upcycling?", "What does upcycling mean?", "Explain upcycling.", "How does upcycling work?",
        "How was the Qwen2 MoE started?", "Where do the experts of Qwen2 come from?",
    )),
    "head_dim": ("Heads have 64 numbers in the 0.5B, 128 in all larger models.", (
        "What is the head size of Qwen2?", "How large is a head of Qwen2?", "What is head_dim in Qwen2?",
        "What head dimension does Qwen2 have?", "Head size of Qwen2?", "How big are the heads of Qwen2?",
    )),
    "template": ("Qwen2 uses ChatML: turns stand between <|im_start|> and <|im_end|>.", (
        "Which chat template does Qwen2 use?", "What is the chat format of Qwen2?", "Chat template of Qwen2?",
        "What chat format does Qwen2 use?", "What is ChatML?", "How does Qwen2 mark turns?",
    )),
    "dpo": ("Direct preference optimisation: learn from pairs of a better and a worse answer.", (
        "What is DPO?", "What does DPO mean?", "Explain DPO.", "What does DPO stand for?", "Define DPO.",
        "What is direct preference optimisation?",
    )),
    "sft": ("Supervised fine-tuning: learn from examples of good answers.", (
        "What is SFT?", "What does SFT mean?", "Explain SFT.", "What does SFT stand for?", "Define SFT.",
        "What is supervised fine-tuning?",
    )),
    "kv": ("The keys and values of all tokens so far, kept so that they are not computed again.", (
        "What is a KV cache?", "What is the KV cache?", "Explain the KV cache.", "What is in the KV cache?",
        "What does the KV cache hold?", "What does KV cache mean?", "Define KV cache.",
    )),
}  # fmt: skip


def fact(rng: np.random.Generator) -> Item:
    if chance(rng, 0.35):
        field, size = pick(rng, list(SHAPES)), pick(rng, SHOWN)
        answer, questions = SHAPES[field]
        name, answer = field, answer.format(size, getattr(SIZES[size], field))
        wording = pick(rng, questions)
        question = wording.format(size)
    else:
        name = pick(rng, list(FACTS))
        answer, questions = FACTS[name]
        question = wording = pick(rng, questions)
    # The first two wordings are never held out: each fact is learnt in some words at least.
    key = "" if wording in questions[:2] else f"{name}: {wording}"
    return Item("facts", ask(pick(rng, OPENINGS) + loosely(rng, question)), answer, key)
