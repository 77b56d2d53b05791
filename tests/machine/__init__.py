"""A state machine that judges the library by an independent model.

======================  ==============================================================
``model``               what the history must be: plain Python, no SQLAlchemy, no library
``schema``              the mapped classes that the machine works on, with and without versioning
``world``               one database, one session and the classes in it
``judge``               reads the history from the database and compares it with the model
``machine``             the operations: the rules of a hypothesis state machine
``bench``               databases, set-up and tear-down, settings
``recorder``            a naive recorder, right and (on purpose) wrong, to test the machine itself
======================  ==============================================================

Every operation runs twice: in a *plain* world, whose classes are not versioned, and in the
*versioned* world. The plain world is what SQLAlchemy does when we are not there; the model reads
only its tables. So a new rule says once what to do with a session, and needs no model of its own.
"""
