"""A second process of a mount, for what keeps a processor busy: fetching, checking, pushing.

The mount's own process answers the kernel, and Python runs one thread at a time. So blocks are fetched
by another process, into memory that both share; it checks them, and puts files into the kernel's page
cache. Content never goes through a pipe unless it is small, and nothing is pickled.

    frames.py    what goes over the socket between the two, as bytes
    forking.py   how the second process comes about and ends
    serving.py   what it does                                         (threads, blocking calls)
    link.py      how the mount asks it                                (the event loop)
    blocks.py    the link as ports.BlockSource, and pushing
"""
