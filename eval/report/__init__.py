"""Finished runs side by side, the paper's numbers beside them: Markdown, CSV, LaTeX and one page to open.

collect.py     runs of every kind, each read back and checked by the reader of its kind:
               evaluations.py steering.py scored.py timings.py; runs.py says what all have in common
setups.py      what made the pictures of a run, by which it finds its row in a table
published.py   what the paper published, from eval/paper
arrange.py     runs -> tables: zero_shot_tables.py (the paper's first), benchmark_tables.py (second to fifth),
               timing_table.py, steering_table.py; table.py says what a table is, cells.py how a number gets into it
paired.py      two models on the same pictures
markdown.py latex.py csv_table.py   a table as text
closer.py      a classification class by class: classes.py best, worst, what is taken for what; examples.py pictures
strips.py      a run of pictures closer: from noise to picture, and how its scores went
charts.py curves.py bars.py   numbers as SVG
provenance.py  where a number came from
page.py        the page; page.html.j2 and what it includes
run.py         the verb
"""
