"""The import path of the peers for reverting; nothing is defined here."""

from .exc import ReverterException
from .revert import Reverter

__all__ = ["Reverter", "ReverterException"]
