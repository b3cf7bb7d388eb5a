"""Set-up of the development environment: uv, a free-threaded interpreter, pinned packages.

Runs on the standard library of Python 3.9 or later, for it is what runs before anything of ours is installed.

    __main__.py      `python3 -m scripts.setup_env [main|tools|loops|uv]`
    steps.py         the order in which an interpreter is looked for, and what is said about it
    choose.py        pure: which of the interpreters found is the best
    uv.py            finding uv, or installing it into a private folder
    apt_config.py    pure: reading the system's apt sources
    apt.py           a private apt that fetches source packages and leaves the system's own apt as it is
    cpython.py       building CPython from such a source package
    environment.py   virtual environments from requirements/*.txt, with a stamp that makes the next run instant
    compat.py        `python3 -m scripts.setup_env.compat`: the fast tests on other versions of Python
    console.py       what a person reads: steps, progress, commands that fail
"""
