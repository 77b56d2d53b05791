"""Run the examples of a documentation page, in order: ``python tests/pages.py PAGE``.

They share one namespace and the working directory, and stand for what a reader types:

* prompts (``>>>``) run and print what is shown, whitespace aside; ``...`` stands for anything;
* ``.. code-block:: python`` runs; with a ``:caption:`` it is the file of that name, and is written;
* ``.. code-block:: diff`` is applied to the file that its ``:caption:`` names;
* ``.. code-block:: console`` runs what stands after ``$``; its standard output is what is shown, if
  anything is.

A block after the comment ``.. not run: why`` needs what is not at hand. Python has to compile.
Blocks of other languages are shown: what comes out, or what another test runs.
"""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

_BLOCK = re.compile(
    r"""(?:^[ ]*\.\.[ ]not[ ]run:[ ](?P<why>.+)\n\n)?
        ^(?P<indent>[ ]*)\.\.[ ]code-block::[ ](?P<language>\w+)\n
        (?P<options>(?:(?P=indent)[ ]+:[\w-]+:.*\n)*)
        \n(?P<body>(?:(?P=indent)[ ]+.*\n|[ ]*\n)+)""",
    re.MULTILINE | re.VERBOSE,
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A code block of a page; the text between two of them has the language "prose"."""

    language: str
    body: str
    line: int
    file: str = ""
    not_run: str = ""


def blocks(text: str) -> Iterator[Block]:
    """The code blocks of a page, and the text between them, in order."""
    end = 0
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("body"))
        yield Block(language="prose", body=text[end : found.start()], line=text.count("\n", 0, end))
        caption = re.search(r":caption: (.+)", found["options"])
        yield Block(
            language=found["language"],
            body=textwrap.dedent(found["body"]).rstrip() + "\n",
            line=line,
            file=caption[1] if caption else "",
            not_run=found["why"] or "",
        )
        end = found.end()
    yield Block(language="prose", body=text[end:], line=text.count("\n", 0, end))


class Run:
    """One run of a page, and what its examples have made so far."""

    def __init__(self, page: Path) -> None:
        self.page = page
        # annotations are looked up in the module that a class says it is from
        sys.modules["__main__"] = module = ModuleType("__main__")
        self.names: dict[str, Any] = vars(module)
        self.parser = doctest.DocTestParser()
        self.runner = doctest.DocTestRunner(optionflags=OPTIONS)

    def block(self, block: Block) -> None:
        """Run one block."""
        if block.not_run:
            if block.language == "python":
                self.compiled(block)
        elif block.file and block.language == "diff":
            apply_diff(Path(block.file), block.body)
        elif block.file:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.body, encoding="utf-8")
        elif block.language == "prose" or ">>> " in block.body:
            self.prompts(block)
        elif block.language == "python":
            exec(self.compiled(block), self.names)
        elif block.language == "console":
            self.commands(block)

    def compiled(self, block: Block) -> Any:
        return compile("\n" * block.line + block.body, self.page, "exec", dont_inherit=True)

    def prompts(self, block: Block) -> None:
        examples = self.parser.get_examples(block.body)
        test = doctest.DocTest(
            examples, self.names, self.page.name, str(self.page), block.line, block.body
        )
        test.globs = self.names
        self.runner.run(test, clear_globs=False)

    def commands(self, block: Block) -> None:
        for entry in re.split(r"^\$ ", block.body, flags=re.MULTILINE)[1:]:
            command, _, shown = entry.partition("\n")
            done = subprocess.run(
                command, shell=True, capture_output=True, text=True, check=False, timeout=60
            )
            if done.returncode != 0:
                raise AssertionError(f"line {block.line}: {command}\n{done.stdout}{done.stderr}")
            check = doctest.OutputChecker().check_output
            if shown.strip() and not check(shown, done.stdout, OPTIONS):
                raise AssertionError(f"line {block.line}: {command}\n{done.stdout}")


def apply_diff(file: Path, diff: str) -> None:
    """Replace in ``file`` what the lines without ``+`` say by what those without ``-`` say."""
    lines = diff.splitlines(keepends=True)
    before = "".join(line[1:] or "\n" for line in lines if not line.startswith("+"))
    after = "".join(line[1:] or "\n" for line in lines if not line.startswith("-"))
    text = file.read_text(encoding="utf-8")
    if text.count(before) != 1:
        raise AssertionError(f"{file} does not have this once:\n{before}\n{text}")
    file.write_text(text.replace(before, after), encoding="utf-8")


def main() -> int:
    page = Path(sys.argv[1])
    sys.path[0] = str(Path.cwd())
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run = Run(page)
    for block in blocks(page.read_text(encoding="utf-8")):
        run.block(block)
    return 1 if run.runner.failures else 0


if __name__ == "__main__":
    sys.exit(main())
