"""The fenced blocks of README.md and docs/, and the commands in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")


@dataclass(frozen=True)
class Block:
    """``line``: number of its first line in the page."""

    page: str
    line: int
    language: str
    text: str

    @property
    def where(self):
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One program with its arguments, as the shell would start it, and what it sets in the environment."""

    where: str
    words: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def program(self):
        return Path(self.words[0]).name

    def __str__(self):
        return f"{self.where} {shlex.join(self.words)}"


def blocks(pages=PAGES):
    found = []
    for page in pages:
        text = page.read_text()
        for match in _FENCE.finditer(text):
            indent, language, content = match.groups()
            content = re.sub(f"^{indent}", "", content, flags=re.MULTILINE)
            line = text.count("\n", 0, match.start()) + 2
            found.append(Block(page.name, line, language, content))
    return found


def commands(pages=PAGES):
    """All commands of blocks of ``sh`` and, behind a prompt, of ``console``."""
    return [
        command
        for block in blocks(pages)
        if block.language in ("sh", "bash", "console")
        for command in of_block(block)
    ]


def of_block(block):
    text = block.text.replace("\\\n", " ")
    if block.language == "console":
        text = "\n".join(re.findall(r"^[$#] (.+)$", text, re.MULTILINE))
    # A here-document is what a command reads, not a command.
    text = re.sub(r"(<<-?'?(\w+)'?.*?\n).*?^\2$", r"\1", text, flags=re.MULTILINE | re.DOTALL)
    # Of "2>&1" the 2 would be taken for an argument.
    text = re.sub(r"(?<=\s)[0-9](?=[<>])", "", _without_comments(text))
    lexer = shlex.shlex(text, posix=True, punctuation_chars="();<>|&\n")
    lexer.whitespace = " \t\r"
    lexer.whitespace_split = True
    lexer.commenters = ""
    words, found = [], []
    for word in [*lexer, "\n"]:
        if word and set(word) <= set("\n;|&()"):
            if words:
                found.append(_command(block, words))
            words = []
        else:
            words.append(word)
    return [command for command in found if command is not None]


def _without_comments(text):
    """shlex takes the end of the line with the comment, and so the end of the command."""
    kept, quote, before, comment = "", "", "\n", False
    for one in text:
        if comment:
            comment = one != "\n"
        elif quote:
            quote = "" if one == quote else quote
        elif one in "'\"":
            quote = one
        elif one == "#" and before.isspace():
            comment = True
        if not comment:
            kept += one
        before = one
    return kept


def _command(block, words):
    environment, rest = [], list(words)
    while rest and _ASSIGNMENT.match(rest[0]):
        name, _, value = rest.pop(0).partition("=")
        environment.append((name, value))
    kept, skip = [], False
    for word in rest:
        if skip:
            skip = False
        elif set(word) & set("<>") and set(word) <= set("<>&0123456789"):
            skip = True
        else:
            kept.append(word)
    if kept[:1] == ["timeout"]:
        kept = kept[2:]
    return Command(block.where, tuple(kept), tuple(environment)) if kept else None
