"""The machinery of worker processes: the cage, the worker, and all that is between them.

A `ProcessCage` has a `WorkerProcess`. The fork server, which a `ForkClient` asks, forks the worker
and reports its end; `worker` is the program that it runs. Cage and worker send messages by a
`Channel`, commands as a number and some offsets (`CommandForms`), and results that are not written
to rows as a `Reply`. A `StatusPage` shows the cage what its worker is doing.
"""
