"""How good is a model? Likelihoods of given answers, and answers of its own, judged.

likelihood   how likely a model holds each of several answers: multiple choice, and the loss on a text
replies      what it says, many prompts at a time
items        questions from a file, with the rule that tells right from wrong
score        replies to items, counted, with intervals: needs nothing that is not installed
home         the home tasks, held-out items of `tinyqwen.tiny`, for the scorer here and for the harness
harness      a model behind lm-evaluation-harness, which brings MMLU, GSM8K and some thousand others
run_harness  its tasks from names to a table
"""
