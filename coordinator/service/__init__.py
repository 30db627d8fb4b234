"""Use cases: one transaction function `fn(tx, now, command)` each, over the store's verbs. They decide; the writer commits.

`transactions.py` prepare, submit, commit, rollback · `verdicts.py` check-back and operator · `release.py` a key's turn ·
`fetching.py` hand out · `settling.py` ack, nack, leases · `topics.py`, `groups.py`, `producers.py` what is made on purpose.
"""
