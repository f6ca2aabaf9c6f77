"""The machinery of Ray actors: what a `RayCage` sends, and what carries it out on the cluster.

A `RayCage` has an `ActorWorker`, which starts an `EnvActor` and waits for its replies. Commands are
the number of a form and the bytes of all that the actor reads; replies are the bytes of all that it
writes (`SentForms`). This module's files import Ray only where it is used.
"""
