"""Writes a history with sqlalchemy-history or SQLAlchemy-Continuum, and tells what it reads.

Run by the Python of an environment with one of them: `python peer.py MODULE URL STRATEGY`. The
models are in `model.py` beside this file; what is read is printed as JSON.
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings

warnings.simplefilter("ignore")


def main(module: str, url: str, strategy: str) -> None:
    import sqlalchemy as sa
    from sqlalchemy.orm import Session, configure_mappers, declarative_base

    peer = importlib.import_module(module)
    peer.make_versioned(user_cls="User", options={"strategy": strategy})
    import model

    base = declarative_base()
    models = model.declare(base)
    configure_mappers()
    engine = sa.create_engine(url)
    base.metadata.create_all(engine)
    with Session(engine) as session:
        model.write(session, models)
    with Session(engine) as session:
        json.dump(model.read(session, models, peer.version_class), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
