"""``polyloop doctor``: can this interpreter run Python code in parallel, and if not, why."""

from polyloop.cli.doctor._command import doctor

__all__ = ("doctor",)
