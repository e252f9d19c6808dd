"""A small DAG over real data that shows what the store saves. ``shmstore demo`` runs it.

::

    load ─► table ─► split ─► part/A ─► statistics/A ─┐
                           ├► part/B ─► statistics/B ─┼─► merged
                           └► part/C ─► statistics/C ─┘

The main process loads, splits and merges; the statistics are worked out by a pool
of worker processes that get their part from the store by id and put their result
there. The same is then done by sending the parts through the pool's pipes.
"""
