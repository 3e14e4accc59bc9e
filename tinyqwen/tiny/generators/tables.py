"""Small tables: number words, days, months, colours, in five languages.

    What is 42 in German?                 zweiundvierzig
    Which day comes after Monday?         Tuesday
"""

from __future__ import annotations

import numpy as np

from tinyqwen.tiny.generators.item import Item, ask, chance, loosely, pick

LANGUAGES = "English", "German", "French", "Spanish", "Chinese"
DAYS = {
    "English": "Monday,Tuesday,Wednesday,Thursday,Friday,Saturday,Sunday",
    "German": "Montag,Dienstag,Mittwoch,Donnerstag,Freitag,Samstag,Sonntag",
    "French": "lundi,mardi,mercredi,jeudi,vendredi,samedi,dimanche",
    "Spanish": "lunes,martes,miércoles,jueves,viernes,sábado,domingo",
    "Chinese": "星期一,星期二,星期三,星期四,星期五,星期六,星期日",
}
MONTHS = {
    "English": "January,February,March,April,May,June,July,August,September,October,November,December",
    "German": "Januar,Februar,März,April,Mai,Juni,Juli,August,September,Oktober,November,Dezember",
    "French": "janvier,février,mars,avril,mai,juin,juillet,août,septembre,octobre,novembre,décembre",
    "Spanish": "enero,febrero,marzo,abril,mayo,junio,julio,agosto,septiembre,octubre,noviembre,diciembre",
    "Chinese": "一月,二月,三月,四月,五月,六月,七月,八月,九月,十月,十一月,十二月",
}
COLOURS = {
    "English": "red,blue,green,black,white,yellow", "German": "rot,blau,grün,schwarz,weiß,gelb",
    "French": "rouge,bleu,vert,noir,blanc,jaune", "Spanish": "rojo,azul,verde,negro,blanco,amarillo",
    "Chinese": "红,蓝,绿,黑,白,黄",
}  # fmt: skip
ONES = {
    "English": "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen",
    "German": "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn "
    "siebzehn achtzehn neunzehn",
    "Chinese": "零 一 二 三 四 五 六 七 八 九 十 十一 十二 十三 十四 十五 十六 十七 十八 十九",
}
TENS = {
    "English": "twenty thirty forty fifty sixty seventy eighty ninety",
    "German": "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig",
    "Chinese": "二十 三十 四十 五十 六十 七十 八十 九十",
}


def spoken(number: int, language: str) -> str:
    """A number below 100 in words.

    >>> [spoken(42, language) for language in TENS], spoken(21, "German"), spoken(7, "English")
    (['forty-two', 'zweiundvierzig', '四十二'], 'einundzwanzig', 'seven')
    """
    ones = ONES[language].split()
    if number < 20:
        return ones[number]
    ten, one = TENS[language].split()[number // 10 - 2], ones[number % 10]
    if number % 10 == 0:
        return ten
    return {"English": f"{ten}-{one}", "German": f"{one.removesuffix('s') if one == 'eins' else one}und{ten}",
            "Chinese": f"{ten}{one}"}[language]  # fmt: skip


def numbers(rng: np.random.Generator) -> Item:
    value, language = int(rng.integers(100)), pick(rng, ("English", "English", "English", "German", "Chinese"))
    word = spoken(value, language)
    if language == "English" and chance(rng, 0.5):
        text = pick(rng, ("Write {} as a number.", "Which number is {}?", "{} in digits?", "Write {} in digits."))
        return Item("numbers", ask(loosely(rng, text.format(word))), str(value), f"{text} {value}")
    text = pick(rng, ("What is {} in {}?", "Write {} in {} words.", "How do you say {} in {}?", "{} in {}?"))
    return Item("numbers", ask(loosely(rng, text.format(value, language))), word, f"{text} {value} {language}")


def neighbours(rng: np.random.Generator) -> Item:
    """Days and months in their order."""
    kind, table = pick(rng, (("day", DAYS), ("month", MONTHS)))
    words, english = table[pick(rng, LANGUAGES)].split(","), table["English"].split(",")
    n = int(rng.integers(len(words)))
    words = english if words[n] in english else words  # April is a month in German, too
    where, by = pick(rng, (("after", 1), ("before", -1)))
    texts = "Which {} comes {} {}?", "What {} is {} {}?", "The {} {} {}?", "What comes {1} {2}?", "Name the {} {} {}."
    text = pick(rng, texts)
    return Item("neighbours", ask(loosely(rng, text.format(kind, where, words[n]))),
                words[(n + by) % len(words)], f"{text} {where} {words[n]}")  # fmt: skip


def translations(rng: np.random.Generator) -> Item:
    table = pick(rng, (DAYS, MONTHS, COLOURS))
    a, b = (LANGUAGES[int(n)] for n in rng.choice(5, 2, replace=False))
    a = a if chance(rng, 0.3) else "English"
    b = "German" if a == b else b
    here, there = (table[language].split(",") for language in (a, b))
    n = int(rng.integers(len(here)))
    text = pick(rng, ("What is {} in {}?", "Translate {} into {}.", "How do you say {} in {}?", "{} in {}?"))
    return Item("translations", ask(loosely(rng, text.format(here[n], b))), there[n], f"{text} {here[n]} {b}")


TASKS = {"numbers": numbers, "neighbours": neighbours, "translations": translations}
