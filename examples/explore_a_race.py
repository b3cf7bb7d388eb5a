"""Find a race by trying every order: two threads withdraw from one account.

``explore`` runs the threads of a scenario one at a time and switches between them where one can see what another does,
so it finds in milliseconds what a stress test may never hit. The message of a failure replays it.
"""

import threading

from polyloop.testing import ExplorationError, Interleaving, explore


class Account:
    def __init__(self, balance: int) -> None:
        self.balance = balance
        self.lock = threading.Lock()

    def withdraw(self, amount: int) -> bool:
        if self.balance < amount:
            return False
        self.balance -= amount  # another may have withdrawn since the line above
        return True

    def withdraw_safely(self, amount: int) -> bool:
        with self.lock:
            return self.withdraw(amount)


def check(account: Account) -> None:
    assert account.balance >= 0, f"overdrawn: {account.balance}"


def racing(it: Interleaving) -> None:
    account = Account(100)
    it.thread(account.withdraw, 80, name="ann")
    it.thread(account.withdraw, 60, name="bob")
    it.check(check, account)


def safe(it: Interleaving) -> None:
    account = Account(100)
    it.thread(account.withdraw_safely, 80, name="ann")
    it.thread(account.withdraw_safely, 60, name="bob")
    it.check(check, account)


try:
    explore(racing)
except ExplorationError as error:
    print(error)
    schedule = error.schedule
else:
    raise SystemExit("the race was not found")

try:
    explore(racing, replay=schedule)
except ExplorationError:
    print("and it fails again when it is replayed")

result = explore(safe, preemptions=3)
assert result.exhaustive
print(f"with the lock: all {result.schedules} schedules with up to {result.preemptions} preemptions are right")
