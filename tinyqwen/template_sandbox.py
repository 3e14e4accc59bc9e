"""Renders a chat template in a process of its own: a template is code that came with a download.

jinja2's sandbox keeps it from reaching Python, but not from looping for ever or filling the memory; a process can be
limited and killed. Run as a script: a JSON request on standard input, a JSON answer on standard output. It imports
jinja2 only, and takes some 0.1 s.
"""

import json
import sys

CPU_SECONDS, MEMORY_BYTES, OUTPUT_CHARACTERS = 2, 512 * 1024 * 1024, 8 * 1024 * 1024


def limit_resources():
    try:
        import resource
    except ImportError:  # Windows: the parent's time limit must do
        return
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def render(template: str, each: list) -> list:
    """The template's text for each set of variables, with the settings and helpers that transformers gives it."""
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    compiled, texts, size = environment.from_string(template), [], 0
    for variables in each:
        parts = []
        for part in compiled.generate(**variables):
            parts.append(part)
            size += len(part)
            if size > OUTPUT_CHARACTERS:
                raise ValueError(f"it writes more than {OUTPUT_CHARACTERS} characters")
        texts.append("".join(parts))
    return texts


if __name__ == "__main__":
    limit_resources()
    try:
        answer: dict = {"texts": render(**json.load(sys.stdin))}
    except MemoryError:
        answer = {"error": "it needs too much memory"}
    except Exception as error:  # anything a hostile template may provoke is an answer, not a crash
        answer = {"error": f"{type(error).__name__}: {error}"}
    json.dump(answer, sys.stdout)
