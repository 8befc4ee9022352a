"""Connections that stay from one command to the next, in a process of their own: the pool.

A command finds its servers' agents started and waiting there, instead of a login that is yet to be made. The pool is
the user's own, is started by a command whose configuration asks for it (``keep_connected``), and ends by itself when
its connections have not been used for that long. Nothing depends on it: without it a command connects by itself.
"""
