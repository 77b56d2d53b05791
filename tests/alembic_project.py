"""A project with models and migrations in a folder of its own, and Alembic's command line on it.

One process runs all commands of a project. It has imported what takes long, but no models, and each
run is a fork of it: so each run has the models of that moment, as a new process would have.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from sqlalchemy.engine import Engine

import sqlalchemy_history

ENV = """
from alembic import context
import sqlalchemy as sa
import sqlalchemy_history.ext.alembic
import models

engine = sa.create_engine(context.config.get_main_option("url"))
with engine.connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=models.Base.metadata,
        render_as_batch=engine.dialect.name == "sqlite",
        **getattr(models, "CONFIGURE", {}),
    )
    with context.begin_transaction():
        context.run_migrations()
"""

TEMPLATE = '''
"""${message}"""
from alembic import op
import sqlalchemy as sa
${imports if imports else ""}

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade():
    ${upgrades if upgrades else "pass"}


def downgrade():
    ${downgrades if downgrades else "pass"}
'''

HEAD = """
import enum
from typing import Any
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, mapped_column, relationship
from sqlalchemy_history import make_versioned, plugins

make_versioned({arguments})

class Base(DeclarativeBase):
    pass

class Color(enum.Enum):
    red = 1
    blue = 2
"""

# Waits for jobs, and runs each in a fork: Alembic's commands, then what a test says, in a session.
SERVER = """
import json, os, sys, traceback
import alembic.autogenerate, alembic.command, alembic.config, alembic.migration
import sqlalchemy as sa
from sqlalchemy.orm import Session, configure_mappers
import sqlalchemy_history as h
import sqlalchemy_history.ext.alembic, sqlalchemy_history.plugins
sa.make_url(sys.argv[1]).get_dialect().import_dbapi()

def run(commands, script, data):
    for command in commands:
        if command != ["same"]:
            alembic.config.main(["-c", "alembic.ini", *command])
    import models
    configure_mappers()
    engine = sa.create_engine(sys.argv[1])
    if ["same"] in commands:
        # what "alembic check" does, which refuses a database that is not at the newest revision
        with engine.connect() as connection:
            context = alembic.migration.MigrationContext.configure(connection)
            ops = alembic.autogenerate.produce_migrations(context, models.Base.metadata).upgrade_ops
            assert ops.is_empty(), ops.as_diffs()
    found = []
    with Session(engine) as session:
        names = {"session": session, "h": h, "sa": sa, "found": found, "data": data}
        exec(script, {**vars(models), **names})
        session.commit()
    return found

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        with open("output", "w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        answer = {"fails": True}
        try:
            answer = {"found": run(**json.loads(line))}
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        with open("answer", "w") as file:
            json.dump(answer, file)
        os._exit(0)
    os.waitpid(child, 0)
    print("done", flush=True)
"""


class Project:
    """A project in a folder of its own, with Alembic set up by hand-written files."""

    def __init__(self, folder: Path, engine: Engine) -> None:
        self.folder = folder
        #: how `models.py` begins
        self.head = HEAD
        url = engine.url.render_as_string(hide_password=False)
        (folder / "migrations" / "versions").mkdir(parents=True)
        (folder / "migrations" / "env.py").write_text(ENV)
        (folder / "migrations" / "script.py.mako").write_text(TEMPLATE)
        ini = f"[alembic]\nscript_location = migrations\nurl = {url.replace('%', '%%')}\n"
        (folder / "alembic.ini").write_text(ini)
        package = Path(sqlalchemy_history.__file__).parent.parent
        self._server = subprocess.Popen(
            [sys.executable, "-B", "-W", "error", "-c", SERVER, url],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(package), str(folder)])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """Let the process end."""
        self._server.communicate()

    def models(self, text: str, plugins: str = "", user_cls: Any = None, **options: Any) -> None:
        """What `models.py` says from now on."""
        arguments = f"user_cls={user_cls!r}, options={options!r}, plugins=[{plugins}]"
        head = self.head.replace("{arguments}", arguments)
        (self.folder / "models.py").write_text(head + textwrap.dedent(text))

    def run(self, *commands: str, script: str = "", data: Any = None, fails: bool = False) -> Any:
        """Run commands of Alembic, then `script`; what that has appended to `found`."""
        job = {
            "commands": [c.split() for c in commands],
            "script": textwrap.dedent(script),
            "data": data,
        }
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(job), file=self._server.stdin, flush=True)
        assert self._server.stdout.readline() == "done\n"
        answer = json.loads((self.folder / "answer").read_text())
        output = (self.folder / "output").read_text()
        if fails:
            assert "fails" in answer
            return output
        assert "found" in answer, f"{output}\n{self.last_revision()}"
        return answer["found"]

    def migrate(self, script: str = "", data: Any = None) -> Any:
        """Autogenerate a revision, run it; a second autogenerate would be empty."""
        return self.run(
            f"revision --autogenerate --rev-id {self.count() + 1:02}",
            "upgrade head",
            "check",
            script=script,
            data=data,
        )

    def count(self) -> int:
        """How many revisions there are."""
        return len(self._revisions())

    def last_revision(self) -> str:
        """The text of the newest revision."""
        files = self._revisions()
        return files[-1].read_text() if files else ""

    def by_hand(self, upgrade: str, downgrade: str = "pass") -> None:
        """A revision written by hand, the newest from now on."""
        count = self.count()
        text = "from alembic import op\nimport sqlalchemy as sa\n"
        text += f"revision, down_revision = '{count + 1:02}', '{count:02}'\n\n"
        for name, body in (("upgrade", upgrade), ("downgrade", downgrade)):
            text += f"def {name}():\n{textwrap.indent(textwrap.dedent(body).strip(), '    ')}\n\n"
        file = self.folder / "migrations" / "versions" / f"{count + 1:02}_by_hand.py"
        file.write_text(text)

    def _revisions(self) -> list[Path]:
        return sorted((self.folder / "migrations" / "versions").glob("*.py"))
