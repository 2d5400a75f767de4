"""Which images a Dockerfile stands on, as the engine's builder would read it.

Source: the reference of the Dockerfile, "FROM", "COPY --from", "Understand how ARG and FROM interact", "Parser
directives". A build is given no arguments, so the defaults of ARG are what counts.
"""

import re
from collections.abc import Iterator, Mapping

_ESCAPE = re.compile(r"#\s*escape\s*=\s*([\\`])\s*", re.IGNORECASE)
_DIRECTIVE = re.compile(r"#\s*\w+\s*=.*")
_INSTRUCTION = re.compile(r"\s*(\w+)\s+(.*)", re.DOTALL)
_FROM = re.compile(r"(?:--\S+\s+)*(\S+)(?:\s+AS\s+(\S+))?\s*", re.IGNORECASE)
_ARG = re.compile(r"""(\w+)(?:=("[^"]*"|'[^']*'|\S*))?""")
_COPIED = re.compile(r"(?:--\S+\s+)*?--from=(\S+)")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::-([^${}]*))?\})")
_SYNTAX = frozenset("$'\"\\`")

_Args = Mapping[str, str | ValueError]
"""What ARG sets before the first FROM; an error where nobody can tell, which matters when something stands on it."""


def named_images(dockerfile: str) -> frozenset[str]:
    """The images that FROM and `--from` name: no stages, no `scratch`. Raises `ValueError` with what is unclear."""
    args: dict[str, str | ValueError] = {}
    stages, images = {"scratch"}, set[str]()
    started = False
    for word, rest in _instructions(dockerfile):
        image = stage = ""
        if word == "ARG" and not started:
            _learn(args, rest)
        elif word == "FROM" and (named := _FROM.fullmatch(rest)):
            image, started, stage = _expand(named[1], args), True, named[2] or ""
        elif word in ("COPY", "ADD") and (copied := _COPIED.match(rest)):
            image = _literal(copied[1])
        if image and image.lower() not in stages:
            images.add(image)
        stages.add(stage.lower())
    return frozenset(images)


def _instructions(dockerfile: str) -> Iterator[tuple[str, str]]:
    """Each instruction in capitals, with what follows it on the lines that belong together."""
    lines = dockerfile.removeprefix("\ufeff").splitlines()
    end = re.compile(re.escape(_escape(lines)) + r"[ \t]*$")
    text = ""
    for line in lines:
        if line.lstrip().startswith("#") or not line.strip():
            continue  # also amid an instruction
        text += end.sub("", line)
        if not end.search(line):
            if instruction := _INSTRUCTION.fullmatch(text):
                yield instruction[1].upper(), instruction[2]
            text = ""


def _escape(lines: list[str]) -> str:
    """What a line ends with that goes on; a directive at the top says so if it is not a backslash."""
    for line in lines:
        if said := _ESCAPE.fullmatch(line.strip()):
            return said[1]
        if not _DIRECTIVE.fullmatch(line.strip()):
            break
    return "\\"


def _learn(args: dict[str, str | ValueError], rest: str) -> None:
    for name, value in _ARG.findall(rest):
        try:
            args[name] = _expand(value, args)
        except ValueError as error:
            args[name] = error


def _expand(word: str, args: _Args) -> str:
    """The word with the values of its variables."""
    quote = word[:1] if len(word) > 1 and word[0] == word[-1] and word[0] in "'\"" else ""
    inner = word[1:-1] if quote else word
    if _SYNTAX & set(inner if quote == "'" else _VARIABLE.sub("", inner)):
        raise ValueError(f"{word}: only $NAME, ${{NAME}} and ${{NAME:-default}} are understood; write the name out")
    return _VARIABLE.sub(lambda found: _value(found[1] or found[2], found[3], args), inner)


def _literal(word: str) -> str:
    """The image of a `--from`, "" for a stage by its number."""
    if "$" in word:
        raise ValueError(f"--from={word}: no ARG counts here; write the image's name out")
    return "" if word.isdecimal() else word


def _value(name: str, default: str | None, args: _Args) -> str:
    value = args.get(name, "")
    if isinstance(value, ValueError):
        raise value
    if value or default:
        return value or default or ""
    raise ValueError(f"{name} has no value; write ARG {name}=… with a default before the first FROM")
