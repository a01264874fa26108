"""The JavaScript client with the bundlers, frameworks and compilers of its users: ``make matrix``.

Each test installs what it needs from npm, once, into ``.matrix``. That is up to a gigabyte.
"""
