"""`twice`: runs a script twice, says where the runs part, and finds the cause by pinning one factor after another.

`factors` (what can be pinned, what it means, the lines that mend it) · `search` (which experiments to make; pure) ·
`tree` (a fresh copy of the working directory for each run) · `runner` (makes and compares the runs) · `screen` (text).
"""
