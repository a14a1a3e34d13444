"""Studies: a plan declared beforehand, the arms that it asks for, and what they show.

`plan` reads `study.toml`; `outlook` says what it will cost and can find; `log` is the chained list of all arms that
were ever started; `executor` runs blocks of arms, `scripts` and `blocks` say how one is run, `runner` does the whole
and goes on where it stopped. Not here: what acts at the branch (`intervening`), how a program is branched
(`programs`), and the statistics (`estimation`).
"""
