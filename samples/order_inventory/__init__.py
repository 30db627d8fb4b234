"""Orders and inventory: two services, two databases, and books that must balance.

    order.py, inventory.py    the services, as a user would write them; db.py and service.py are their plumbing
    data/, csvbook.py         a day of real orders, and its reader
    demo.py                   `halfmsg demo`: processes.py starts and kills, story.py tells, replay.py replays, checker.py counts

By hand, each in a terminal of its own (`serve --dev` makes topics, groups and producers on first use):

    halfmsg serve --dev
    python -m halfmsg.samples.order_inventory.order --db sqlite:///orders.db
    python -m halfmsg.samples.order_inventory.inventory --db postgresql:///inventory
"""
