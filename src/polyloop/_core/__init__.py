"""The ground floor: mailbox, selector, worker, parking, handle, context, and the seam over threading and time.

Private; users get these names from ``polyloop`` and ``polyloop.lowlevel``.
"""
