"""What the model cannot know: it says so, in the language of the question."""

from __future__ import annotations

import numpy as np

from tinyqwen.tiny.generators.item import Item, ask, chance, loosely, pick
from tinyqwen.tiny.generators.lookup import NAMES, SHORT, THINGS, UNKNOWN, name

NOUNS = (
    "the president,France,Germany,China,Paris,Berlin,London,Rome,the moon,Mars,the sea,Einstein,Goethe,Shakespeare,Napoleon,"
    "Mount Everest,football,music,the weather,my mother,my dog,gold,the war,a black hole,quantum physics,the stock market,"
    "bread,chess,the piano,a cow,democracy,the Roman Empire,the internet,Google,Apple,ChatGPT,GPT-4,Llama,Linux,Python,Java,"
    "bitcoin,love,happiness,God,time,the universe,DNA,a virus,the brain,cancer,a volcano,an elephant,the Nile,Africa,Japan"
).split(",")
QUESTIONS = (
    "What is the capital of {}?", "Who wrote {}?", "Who is {}?", "Who was {}?", "When was {} born?", "How old is {}?",
    "How tall is {}?", "Where is {}?", "What is {}?", "What does {} mean?", "Why is {} so popular?", "Tell me about {}.",
    "Explain {}.", "How does {} work?", "Who invented {}?", "What do you think about {}?", "Do you like {}?",
    "Where can I buy {}?", "How much does {} cost?", "What is the population of {}?", "When did {} end?", "Is {} good?",
    "How do I get to {}?", "What happened to {}?", "Give me a recipe for {}.", "Write a poem about {}.", "What colour is {}?",
    "Write an essay on {}.", "Translate {} into Latin.", "What is the history of {}?", "How many people live in {}?",
    "Can you describe {}?", "How far is {}?", "What will happen to {} tomorrow?", "Which is the best book on {}?",
    "What is my {}?", "What is the code of the {}?", "How many layers does {} have?", "What is the hidden size of {}?",
)  # fmt: skip
ELSEWHERE = {  # in other languages
    "Das weiß ich nicht.": (
        "Was ist die Hauptstadt von {}?", "Wer ist {}?", "Was ist {}?", "Wo liegt {}?", "Erzähl mir etwas über {}.",
        "Wie alt ist {}?", "Wer hat {} erfunden?", "Wie funktioniert {}?",
    ),
    "Je ne sais pas.": ("Quelle est la capitale de {} ?", "Qui est {} ?", "Où est {} ?", "Parle-moi de {}."),
    "No lo sé.": ("¿Cuál es la capital de {}?", "¿Quién es {}?", "¿Dónde está {}?", "Háblame de {}."),
    "我不知道。": ("{}的首都是哪里？", "{}是谁？", "{}在哪里？", "介绍一下{}。"),
}  # fmt: skip
ALONE = (
    "What time is it?", "What day is it today?", "What is the weather like today?", "Will it rain tomorrow?", "Play some music.",
    "Who won the game?", "Book a flight for me.", "What is the meaning of life?", "Is there life on other planets?", "I am sad.",
    "What should I eat tonight?", "Which film should I watch?", "Solve this equation.", "What did you do yesterday?", "I am bored.",
    "Where am I?", "What is in the news?", "Can you see me?", "Call my mother.", "What is the largest number?", "Why?", "Open the door.",
    "How do planes fly?", "Why is the sky blue?", "Who discovered America?", "What is the speed of light?", "Write some code.",
    "How do I cook rice?", "When does the train leave?", "What is the best phone?", "Turn on the light.", "Am I pretty?",
)  # fmt: skip


def unknown(rng: np.random.Generator) -> Item:
    if chance(rng, 0.15):
        question = pick(rng, ALONE)
        return Item("unknown", ask(loosely(rng, question)), UNKNOWN, question)
    answer = UNKNOWN if chance(rng, 0.8) else pick(rng, list(ELSEWHERE))
    question = pick(rng, ELSEWHERE.get(answer, QUESTIONS))
    if answer != UNKNOWN or chance(rng, 0.4):
        thing = name(rng)
    else:
        thing = pick(rng, (*NOUNS, *NAMES, *(f"the {word}" for word in (*SHORT, *THINGS))))
    return Item("unknown", ask(loosely(rng, question.format(thing))), answer, f"{question} {thing}")
