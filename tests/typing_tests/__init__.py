"""What type checkers must see of the package; mypy and pyright are the judges, nothing here runs.

What must be refused has a ``type: ignore``; both checkers complain if there is nothing to ignore.
SQLAlchemy 2.0 and 2.1 type a statement differently, so what is asserted is what a session returns.
"""
