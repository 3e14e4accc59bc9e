"""Model answers to the exercises of the lessons, and for each a wrong one that a learner might well give.

Code that is run after the lesson; then the exercises' asserts must pass (`right`) or each fail (`wrong`).
"""

from typing import NamedTuple


class Answers(NamedTuple):
    right: str
    wrong: tuple[str, ...]


ANSWERS = {
    "01_one_token": Answers(
        """
operations = 5 + 24 * 22  # take_rows twice, rope_tables, rms_norm, linear; a layer and the 21 inside of it
found_THK = np.repeat(v_TGK, 3, axis=1)
parameters = 2 * 50 * 24 + (24 * 24 + 24) + 2 * (8 * 24 + 8) + 24 * 24 + 3 * 24 * 40 + 3 * 24
""",
        ("operations = 24 * 27", "found_THK = np.tile(v_TGK, (1, 3, 1))", "parameters = 6304"),
    ),
    "02_tokens": Answers(
        """
pieces = ["hell", "hello"]  # "he ll" comes before "hell o": both words are "hell" first
count = 1 + 1 + 2 + 1 + 4
controls = 2 * 4 + 1  # the system turn that the template adds, three of ours, and the beginning of an answer
""",
        ('pieces = ["hello", "hell"]', "count = len('3 é 🙂')", "controls = 7"),
    ),
    "03_rms_norm": Answers(
        """
y = [6 / 5, 8 / 5, 0, 0]  # the squares are 36 and 64, their mean is 25
loudness = (1e-6 / 3) ** 0.5  # r / sqrt(r^2 + eps) = 1/2, so 4 r^2 = r^2 + eps
norms = 2 * 80 + 1
""",
        ("y = [0.6, 0.8, 0, 0]", "loudness = 1e-3", "norms = 160"),
    ),
    "04_rope": Answers(
        """
twice = (-3, -4)
order = [0, 2, 1, 3]
last = 2**11
""",
        ("twice = (4, -3)", "order = [0, 1, 2, 3]", "last = 2**10"),
    ),
    "05_attention": Answers(
        """
out = (1 * 24 + 2 * 12 + 5 * 8 + 8 * 0) / 16
head = 9 // 7
prompt, four_more = 100 * 101 // 2, 97 + 98 + 99 + 100
""",
        ("out = 11", "head = 0", "prompt, four_more = 100 * 100, 4 * 100"),
    ),
    "06_swiglu": Answers(
        """
answer = -np.log(3) / 4
flops = 2 * 3 * 896 * 4864
gate_FD = [[1, 0], [-1, 0]]
""",
        ("answer = -np.log(3) * 3 / 4", "flops = 3 * 896 * 4864", "gate_FD = [[1, 0], [1, 0]]"),
    ),
    "07_kv_cache": Answers(
        """
without, with_one = sum(5 + n for n in range(20)), 5 + 19
tokens = 2**30 // (2 * 80 * 8 * 128 * 2)
cache.length = 1
""",
        ("without, with_one = 5 * 20, 5 + 20", "tokens = 2**30 // (80 * 8 * 128 * 2)", "cache.length = 0"),
    ),
    "08_sampling": Answers(
        """
roof = 100 * 100 / 2258
remaining = ["mat", "sofa", "floor", "roof", "moon", "fish"]  # 92 %, and fish crosses the line
least = 0.15  # between 4 / 36 and 6 / 36
""",
        ("roof = 5", 'remaining = ["mat", "sofa", "floor", "roof", "moon"]', "least = 0.1"),
    ),
    "09_where_time_goes": Answers(
        """
speed = 20e9 / (4 * 7.1e9)
N = 10  # 2 * 10 / 200 = 2 / 20
name = "attention"
""",
        ("speed = 20e9 / (2 * 7.1e9)", "N = 20", 'name = "linear"'),
    ),
    "10_experts": Answers(
        """
weights = [4 / 9, 3 / 9, 2 / 9]
three, ten = 3 * 8, 64  # there are no more than 64
gate = 1 / 2  # sigmoid of 0
""",
        ("weights = [0.4, 0.3, 0.2]", "three, ten = 24, 80", "gate = 1"),
    ),
    "12_four_speeds": Answers(
        """
from backends.cpu.simd import load_part

@numba.njit
def whole(w_OI, x_I, y_O):
    for o in range(len(y_O)):
        total = zeros()
        for i in range(0, len(x_I), 16):
            left = len(x_I) - i
            total = fma(load_part(w_OI, (o, i), left), load_part(x_I, i, left), total)
        y_O[o] = sum_of(total)

T = 6  # 4.5 / 8 bytes take 11.25 ps, a multiply-add for each token 2 ps
dot = lambda w_i, x_i: (w_i.astype(np.int32) - 128) @ x_i.astype(np.int32)
""",
        ("whole = v2", "T = 12", "dot = lambda w_i, x_i: (w_i - 128).astype(np.int32) @ x_i.astype(np.int32)"),
    ),
    "13_yarn": Answers(
        """
tokens = 4 * 54_400  # on the stretched clock; beyond the 131,072 of the stretched context, where nobody looks
first = 47
too_small = 1 / m  # scores grow by m, not by m * m
""",
        ("tokens = 54_400", "first = 40", "too_small = 1 / m**2"),
    ),
    "14_windows": Answers(
        """
far = 5 * (6 - 1)
slot = 11 % 5
tokens = 4096 - 1 + 256
""",
        ("far = 5 * 6", "slot = 11 % 4", "tokens = 4096"),
    ),
    "15_dual_chunk": Answers(
        """
far = 12 - 3  # chunk 3 looks at chunk 0: from place 12
intra, succ, inter = 100_001 - 3 * 31_744, 31_744, 2 * 31_744  # L = 31,744, chunk 3
nearest = 8  # key 7: min(7 + 8, 12) - 7 = 5; keys 8 to 15 are in its own chunk
""",
        ("far = 30 - 3", "intra, succ, inter = 100_001 - 3 * 32_768, 32_768, 2 * 32_768", "nearest = 5"),
    ),
    "16_a_gradient_by_hand": Answers(
        """
answer = [1 - 1 / 5] + 4 * [-1 / 5]
times = 4
square_gradient = lambda d_out, x: d_out * 2 * x
""",
        ("answer = [1, 0, 0, 0, 0]", "times = 2", "square_gradient = lambda d_out, x: 2 * x"),
    ),
    "17_answers_and_preferences": Answers(
        """
coefficient = [-1 / 8] * 8  # over both conversations: a token counts the same everywhere
answer_2 = np.log(1 + np.exp(-0.5 * (np.log(2) + np.log(2))))
places = [2]  # the user's turn; the assistant's own is learnt already
""",
        (
            "coefficient = [-1 / 4] * 2 + [-1 / 12] * 6",
            "answer_2 = np.log(1 + np.exp(-0.5 * np.log(2)))",
            "places = [2, 6]",
        ),
    ),
    "18_reward_and_tax": Answers(
        """
A = [0.6, 0.6, -0.4, -0.4, -0.4]
pairs = [(1, 0)]  # where all are worth the same there is none
step = [2, 3, -2]  # (1, -1, 0.5) and (1, 3, -2): the first agree, elsewhere the larger one wins
""",
        ("A = [1, 1, -1, -1, -1]", "pairs = [(1, 0), (3, 4)]", "step = [2, 2, -1.5]"),
    ),
    "19_upcycling": Answers(
        """
copies, left = 4, 40
scale = 16 * 96 / (4 * 24)
factor = 1 / 2
""",
        ("copies, left = 3, 0", "scale = 16 / 4", "factor = 1"),
    ),
    "20_three_ways": Answers(
        """
channels = [5, 69, 133, 197]
rounds = 10
memory_bytes = lambda T, D: 8 * T * D
""",
        ("channels = [15, 16, 17, 18]", "rounds = 1023", "memory_bytes = lambda T, D: 12 * T * D"),
    ),
    "21_who_reads_which_bytes": Answers(
        """
useful = 1 / 2
cache_bytes = 28 * 1000 * 2 * 4 * 128 * 2
loads_each = 2  # 2 MB must be on their way, and a load of each thread is 1 MB
""",
        ("useful = 1 / 4", "cache_bytes = 28 * 1000 * 2 * 28 * 128 * 2", "loads_each = 1"),
    ),
    "22_graphs": Answers(
        """
enough = PYTHON - NODE  # 4.7: then the next launch is there before the device is
adding = Recorder()
adding(lambda: sum_1.__iadd__(token_1))
speed = 1e6 / 500
""",
        ("enough = 2.0", "adding = Recorder(); adding(sum_1.__iadd__, 1)", "speed = 1e6 / 900"),
    ),
    "23_what_the_curve_says": Answers(
        """
rest = 30 * np.log(20) / 91
place = 2
heart = np.log(12) / 25  # which of the twelve it is, is all there is to know
""",
        ("rest = np.log(20) / 3", "place = 1", "heart = 0"),
    ),
    "24_inside_a_trained_model": Answers(
        """
key = 27 - 20 + 1
zeros = 192 * 32  # as many rows as the hidden size, as many columns as a head is wide
distance = 12 - 1
""",
        ("key = 7", "zeros = 32", "distance = 12"),
    ),
    "25_what_a_number_says": Answers(
        """
best = 1 + told(exponent_n) + 7
sizes = 7.6 * 2, 7.6 * 1.5
kept = 12.7  # nearly 1000 * 128 / 10000
""",
        ("best = 12", "sizes = 15.2, 7.6", "kept = 0.1"),
    ),
    "26_ruling_out": Answers(
        """
deviation = 0.1 * np.sqrt(900 / 12)
factor = 2  # 16 numbers become 8
share = 1.0  # each logit has a part in the sum of the softmax
""",
        ("deviation = 0.1 * 900 / 12", "factor = 4", "share = 0.5"),
    ),
}
