"""How good is a model? Likelihoods of given answers, and answers of its own, judged.

    likelihood   how likely a model holds each of several answers: multiple choice, and the loss on a text
    replies      what it says, many prompts at a time
    items        questions with a rule that tells right from wrong; the home tasks are made of them
    score        replies to items, counted, with intervals: needs nothing that is not installed
    harness      all of it behind lm-evaluation-harness, which brings MMLU, GSM8K and some thousand others
"""
