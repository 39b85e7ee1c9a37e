"""Finished evaluations side by side, the paper's numbers beside them: Markdown, CSV, LaTeX and one page to open.

collect.py     runs, read back and checked against their own predictions
published.py   what the paper published, from eval/paper
paired.py      two models on the same pictures
arrange.py     runs -> tables in the paper's shape; table.py says what a table is
markdown.py latex.py csv_table.py   a table as text
classes.py     class by class: best, worst, what is taken for what
examples.py    pictures to look at, from the data
charts.py      numbers as SVG
provenance.py  where a number came from
page.py        the page; page.html.j2
run.py         the verb
"""
