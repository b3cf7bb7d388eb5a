"""``polyloop bench``: the published experiments on the user's machine.

One file for each benchmark (``_cpu``, ``_fetch``, ``_threads``, ``_crawl``), which measures and returns a dataclass;
``_panels`` says what a result looks like as a table and as a diagram; ``_chart`` and ``_command`` show it. ``_site``
starts the embedded web site.
"""

from polyloop.cli.bench._command import bench

__all__ = ("bench",)
