"""Imported by the process that workers are forked from: they and it then are a process group of their own.

torchrun ends a trainer by a signal to the trainer's whole group. The trainer finishes its step and saves it, for which
it may still need its workers; these end with it.
"""

import os

os.setpgid(0, 0)
