"""The ground floor: mailbox, selector, worker, parking, handle, context, and the seam over threading and time.

Private: users get what is meant for them from ``polyloop``.
"""
