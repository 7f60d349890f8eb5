"""The lock under which ops are declared."""

from __future__ import annotations

import os
import threading

# Held while an op is made or changed, since several threads may declare the same one, and held
# during fork(), so that a child process never gets an op that is half made. Whoever holds it must
# not run user code or reset the compiler: these may wait for a thread that waits for this lock.
declaring = threading.RLock()
os.register_at_fork(
    before=declaring.acquire, after_in_parent=declaring.release, after_in_child=declaring.release
)
