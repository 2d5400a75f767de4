"""Our PID 1: one small C program (`init.c`), its build, and the two ends of its wire format.

The same static binary is the first process of every container. It takes one job description from standard input, runs
the job, kills whatever the job leaves behind and reports how it ended. `docs/init.md` has the protocol and the reasons.
"""
